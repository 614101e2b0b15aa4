// SPDX-License-Identifier: MPL-2.0

//! `droidrelay doctor` against a real broker and a real server, well and ill.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    process::Command,
};

use droidrelay_testkit::{
    certs::{Authority, Validity},
    servers::{
        mosquitto::{self, Mosquitto, TOPIC},
        relay::{Event, Kind},
    },
    testbed::{ENCODER, Testbed},
};

use crate::common::{Folder, droidrelay_with_plugins, said};

/// Exit code and lines of a look at `line`.
fn doctor(line: &str, options: &[&str]) -> (i32, Vec<String>) {
    let folder = Folder::new();
    let output = droidrelay_with_plugins()
        .arg("doctor")
        .arg(folder.launch(line))
        .args(options)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let lines = said.lines().map(str::to_owned).collect();
    (output.status.code().unwrap(), lines)
}

fn find<'a>(lines: &'a [String], begin: &str, part: &str) -> &'a str {
    lines
        .iter()
        .find(|line| line.starts_with(begin) && line.contains(part))
        .unwrap_or_else(|| panic!("no {begin} … {part} in\n{}", lines.join("\n")))
}

fn line(testbed: &Testbed) -> String {
    format!(
        "videotestsrc is-live=true ! {} ! {ENCODER} ! {}",
        testbed.valve(),
        testbed.sink()
    )
}

#[test]
fn a_healthy_robot_passes_and_what_runs_is_not_disturbed() {
    let testbed = Testbed::start(Kind::Nginx).unwrap();
    let seen = testbed.observer.seen().mark();
    let (code, lines) = doctor(&line(&testbed), &[]);
    assert_eq!(code, 0, "{}", lines.join("\n"));
    for (begin, part) in [
        (
            "ok",
            concat!("plugin droidrelay: ", env!("CARGO_PKG_VERSION")),
        ),
        ("ok", "encoders for H.264 in software: "),
        ("ok", "elements: all 4"),
        ("ok", "encoder x264enc: software"),
        ("ok", "source videotestsrc: opens"),
        ("ok", ": name: 127.0.0.1 is 127.0.0.1"),
        ("ok", ": login: as robot1"),
        ("ok", &format!("subscribe to {TOPIC}")),
        ("ok", ": RTMP: it speaks RTMP"),
        ("note", "credentials: not tried"),
    ] {
        find(&lines, begin, part);
    }
    assert!(lines.iter().any(|line| line.contains("clock: 20")));
    // Neither the broker's topics nor the server have heard of it.
    let said = testbed.observer.seen().since(seen);
    assert!(said.is_empty(), "{said:?}");
    assert!(testbed.relay.events().all().is_empty());
}

#[test]
fn credentials_are_tried_by_publishing_where_that_is_asked_for() {
    let testbed = Testbed::start(Kind::Nginx).unwrap();
    let (code, lines) = doctor(&line(&testbed), &["--publish"]);
    find(&lines, "ok", "the server has accepted a test picture");
    assert_eq!(code, 0, "{}", lines.join("\n"));
    testbed.wait_relay(0, Event::Published);
    testbed.wait_relay(0, Event::Unpublished);

    testbed.write_publisher_password("a-wrong-one").unwrap();
    let (code, lines) = doctor(&line(&testbed), &["--publish"]);
    let refused = find(&lines, "FAILED", "rtmpauthsink0: credentials: ");
    assert!(refused.contains("password"), "{refused}");
    assert_eq!(code, 77, "{}", lines.join("\n"));
    assert!(!lines.join("\n").contains("a-wrong-one"));
}

#[test]
fn each_fault_has_its_line_with_the_remedy_and_its_exit_code() {
    let testbed = Testbed::start(Kind::Nginx).unwrap();
    let good = line(&testbed);
    let port = testbed.broker.port().to_string();
    for (bad, code, part, remedy) in [
        (
            good.replace(
                "videotestsrc",
                "v4l2src device=/dev/no-such-video !  identity silent=true ! videotestsrc",
            ),
            65,
            "line.launch:1:",
            "",
        ),
        (
            good.replace(
                "videotestsrc is-live=true",
                "v4l2src device=/dev/no-such-video",
            ),
            69,
            "/dev/no-such-video: not there",
            "/dev/v4l/by-id/",
        ),
        (
            good.replace("x264enc", "nvv4l2h264enc").replace(
                " tune=zerolatency speed-preset=ultrafast bitrate=1500 key-int-max=30",
                "",
            ),
            69,
            "element nvv4l2h264enc at 1:",
            "NVIDIA",
        ),
        (
            good.replace(&format!("127.0.0.1:{port}"), "nobody.invalid"),
            69,
            "broker mqtt://nobody.invalid:1883: name: ",
            "DNS",
        ),
        (
            good.replace(&format!("127.0.0.1:{port}"), "127.0.0.1:1"),
            69,
            "TCP: cannot connect",
            "port",
        ),
        (
            good.replace("username=robot1", "username=stranger"),
            77,
            "login as stranger: ",
            "check username and password",
        ),
        (
            good.replace(
                &format!("rtmp://127.0.0.1:{}", testbed.relay.rtmp_port()),
                &format!("rtmp://127.0.0.1:{port}"),
            ),
            69,
            "does not speak RTMP",
            "check the port",
        ),
        (
            good.replace(
                &format!("rtmp://127.0.0.1:{}", testbed.relay.rtmp_port()),
                // Nobody listens there.
                "rtmps://127.1.2.3",
            ),
            69,
            "server rtmps://127.1.2.3:1936: TCP: cannot connect",
            "the port right?",
        ),
        (
            good.replace("password-file=", "password-file=/nonexistent"),
            78,
            "cannot read secret file /nonexistent",
            "create it",
        ),
        (
            "videotestsrc ! ${NOBODY}".into(),
            78,
            "NOBODY",
            "--set NOBODY",
        ),
    ] {
        let (got, lines) = doctor(&bad, &[]);
        let found = find(&lines, "FAILED", part);
        assert!(found.contains(remedy), "{found}");
        assert_eq!(got, code, "{bad}\n{}", lines.join("\n"));
        assert!(!lines.join("\n").contains(&testbed.broker.robot.password));
    }
}

#[test]
fn what_is_wrong_is_named_in_the_order_in_which_a_person_mends_it() {
    let (code, lines) = doctor(
        "v4l2src device=/dev/video-none ! mqttvalve broker=mqtt://127.0.0.1:1 \
         password-file=/nonexistent/pass ! fakesink",
        &[],
    );
    assert_eq!(code, 78, "{}", lines.join("\n"));
    let place = |part: &str| {
        let found = lines.iter().position(|line| line.contains(part));
        found.unwrap_or_else(|| panic!("no {part} in\n{}", lines.join("\n")))
    };
    let order = [
        "plugin droidrelay:",
        "password-file /nonexistent/pass: No such file",
        "clock:",
        "broker mqtt://127.0.0.1:1: name:",
        "broker mqtt://127.0.0.1:1: TCP:",
        "/dev/video-none: not there",
    ];
    let places = order.map(place);
    assert!(places.is_sorted(), "{places:?} in\n{}", lines.join("\n"));
}

#[test]
fn a_certificate_that_does_not_hold_is_named_with_the_remedy() {
    let folder = Folder::new();
    let authority = Authority::new().unwrap();
    let ca = authority.write(folder.0.path()).unwrap();
    for (validity, is_trusted, code, part) in [
        (Validity::Now, true, 0, "the certificate is valid"),
        (Validity::Now, false, 69, "set ca-file"),
        (Validity::NotYet, true, 69, "clock"),
        (Validity::Expired, true, 69, "renew it"),
    ] {
        let broker = Mosquitto::start_with(mosquitto::Options {
            tls: Some(authority.server(&["localhost"], validity).unwrap()),
            ..mosquitto::Options::default()
        })
        .unwrap();
        let trust = if is_trusted {
            format!("ca-file={}", ca.display())
        } else {
            String::new()
        };
        let valve = broker.valve().replace(
            &broker.url(),
            &format!("mqtts://localhost:{}", broker.tls_port()),
        );
        let (got, lines) = doctor(
            &format!("videotestsrc is-live=true ! {valve} {trust} ! fakesink"),
            &[],
        );
        let begin = if code == 0 { "ok" } else { "FAILED" };
        let found = find(&lines, begin, ": TLS: ");
        assert!(found.contains(part), "{found}");
        assert_eq!(got, code, "{}", lines.join("\n"));
    }
}

#[test]
fn a_broker_that_refuses_the_subscription_is_named() {
    let broker = Mosquitto::start_with(mosquitto::Options {
        dynamic: true,
        ..mosquitto::Options::default()
    })
    .unwrap();
    let user = broker.robot.user.as_str();
    for rights in [
        &["createRole", "deaf"][..],
        &["addRoleACL", "deaf", "subscribeLiteral", TOPIC, "deny", "1"],
        &["addClientRole", user, "deaf", "1"],
    ] {
        broker.set_rights(rights).unwrap();
    }
    let line = format!("videotestsrc is-live=true ! {} ! fakesink", broker.valve());
    let (code, lines) = doctor(&line, &[]);
    let found = find(&lines, "FAILED", "refuses the subscription");
    assert!(found.contains("access rights"), "{found}");
    assert_eq!(code, 77);
}

/// A size that the camera lacks: GStreamer would say "Internal data stream error".
#[test]
fn what_a_camera_lacks_is_named_with_what_it_has() {
    let folder = Folder::new();
    let line = |size: &str| {
        let counter = folder.path("starts");
        let counter = counter.display();
        format!(
            "scriptedsrc counter={counter} script=play ! video/x-raw,{size} ! mqttvalve ! fakesink"
        )
    };
    let lacking = line("width=1280,height=720,framerate=30/1");
    let told = "asked for video/x-raw 1280x720 at 30/s; the camera has, the nearest first: video/x-raw I420 64x48 at 50/s";
    let (code, lines) = doctor(&lacking, &[]);
    let found = find(&lines, "FAILED", told);
    assert!(found.contains("WIDTH"), "{found}");
    assert_eq!(code, 65, "{}", lines.join("\n"));
    let check = |line: &str| {
        let output = droidrelay_with_plugins()
            .arg("check")
            .arg(folder.launch(line))
            .output()
            .unwrap();
        (output.status.code(), said(&output))
    };
    let (code, text) = check(&lacking);
    assert!(text.contains(told), "{text}");
    assert_eq!(code, Some(65), "{text}");
    let (code, text) = check(&line("width=64,height=48"));
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn tls_to_a_port_without_it_is_named() {
    let testbed = Testbed::start(Kind::Nginx).unwrap();
    let (broker, relay) = (testbed.broker.port(), testbed.relay.rtmp_port());
    for (from, to) in [
        (
            format!("mqtt://127.0.0.1:{broker}"),
            format!("mqtts://127.0.0.1:{broker}"),
        ),
        (
            format!("rtmp://127.0.0.1:{relay}"),
            format!("rtmps://127.0.0.1:{relay}"),
        ),
    ] {
        let good = line(&testbed);
        assert!(good.contains(&from), "{good}");
        let (code, lines) = doctor(&good.replace(&from, &to), &[]);
        let found = find(&lines, "FAILED", ": TLS: ");
        assert!(found.contains("port"), "{found}");
        assert!(found.contains("with TLS?"), "{found}");
        assert_eq!(code, 69, "{}", lines.join("\n"));
    }
}

#[test]
fn a_machine_without_a_network_is_told_so_and_not_to_look_at_the_server() {
    let folder = Folder::new();
    for host in ["192.0.2.1", "cloud.invalid"] {
        let line = format!("videotestsrc is-live=true ! mqttvalve broker=mqtt://{host} ! fakesink");
        let mut command = droidrelay_with_plugins();
        command.arg("doctor").arg(folder.launch(&line));
        let mut isolated = Command::new("unshare");
        isolated.args(["--user", "--map-root-user", "--net"]);
        isolated.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => isolated.env(name, value),
                None => isolated.env_remove(name),
            };
        }
        let output = isolated.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<_> = said.lines().map(str::to_owned).collect();
        let found = find(&lines, "FAILED", host);
        assert!(found.contains("no network"), "{found}");
        assert!(!said.contains("is the server running"), "{said}");
        assert_eq!(output.status.code(), Some(69), "{said}");
    }
}

/// A service whose unit names `nobody`, as systemctl would tell it: with root's rights the doctor
/// takes on nobody's.
#[test]
fn a_service_is_looked_at_with_its_environment_its_credentials_and_its_rights() {
    let testbed = Testbed::start(Kind::Nginx).unwrap();
    let folder = Folder::new();
    let write = |name: &str, text: &str, mode: u32| {
        let path = folder.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    };
    fs::set_permissions(folder.0.path(), Permissions::from_mode(0o777)).unwrap();
    let systemctl = "#!/bin/sh\necho LoadState=loaded\necho User=nobody\necho Group=nogroup\necho SupplementaryGroups=\necho Environment=WIDTH=64\n";
    write("systemctl", systemctl, 0o755);
    let valve = testbed.valve();
    let password = testbed.broker.robot_password_file();
    let valve = valve.replace(password.to_str().unwrap(), "${MQTT_PASSWORD_FILE}");
    assert!(valve.contains("${MQTT_PASSWORD_FILE}"), "{valve}");
    let line = format!(
        "${{CAMERA}} ! video/x-raw,width=${{WIDTH}},height=${{HEIGHT}} ! {valve} ! fakesink"
    );
    write("front.launch", &line, 0o644);
    write("mqtt.pass", &testbed.broker.robot.password, 0o600);
    let command = droidrelay_with_plugins();
    let plugins = command
        .get_envs()
        .filter_map(|(name, value)| Some((name, value?)));
    let mut environment: String = plugins
        .filter(|(name, _)| *name == "GST_PLUGIN_PATH")
        .map(|(name, value)| format!("{}={}\n", name.display(), value.display()))
        .collect();
    environment += &format!("GST_REGISTRY={}\n", folder.path("registry").display());
    environment +=
        "CAMERA=\"videotestsrc is-live=true\"\nDROIDRELAY_OPTIONS=--metrics 0 --set HEIGHT=48\n";
    write("front.env", &environment, 0o600);
    let look = || {
        let path = format!(
            "{}:{}",
            folder.0.path().display(),
            std::env::var("PATH").unwrap()
        );
        let output = droidrelay_with_plugins()
            .args(["doctor", "front"])
            .env("CONFIGURATION_DIRECTORY", folder.0.path())
            .env("PATH", path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<_> = said.lines().map(str::to_owned).collect();
        (output.status.code(), lines)
    };
    let (code, lines) = look();
    find(&lines, "ok", "login: as robot1");
    find(&lines, "ok", "source videotestsrc: opens");
    assert_eq!(code, Some(0), "{}", lines.join("\n"));
    if rustix::process::geteuid().is_root() {
        find(
            &lines,
            "ok",
            "service droidrelay@front: looked at as nobody",
        );
        // Of devices, it is there everywhere, and root's.
        let line = line.replace("${CAMERA}", "v4l2src device=/dev/console");
        write("front.launch", &line, 0o644);
        let (code, lines) = look();
        let found = find(
            &lines,
            "FAILED",
            "/dev/console: no right to open it as nobody",
        );
        assert!(found.contains("usermod"), "{found}");
        assert_eq!(code, Some(77), "{}", lines.join("\n"));
    } else {
        find(&lines, "note", "with the rights of whoever runs this");
    }
    let left = fs::read_dir("/run").into_iter().flatten().flatten();
    let mut left = left.filter(|entry| {
        let name = entry.file_name();
        name.to_string_lossy().starts_with("droidrelay-doctor-")
    });
    assert!(left.next().is_none());
}

#[test]
fn a_machine_is_looked_at_without_a_line() {
    let output = droidrelay_with_plugins().arg("doctor").output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    for part in ["plugin droidrelay", "clock", "encoders", "libcamera"] {
        assert!(said.contains(part), "{part} in\n{said}");
    }
    let output = droidrelay_with_plugins()
        .arg("doctor")
        .env("GST_PLUGIN_PATH", "/nonexistent")
        .env("GST_REGISTRY", Folder::new().path("registry"))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(
        said.contains("FAILED  plugin droidrelay: not found -> install gstreamer1.0-droidrelay"),
        "{said}"
    );
}
