// SPDX-License-Identifier: MPL-2.0

//! Triggers, metrics, the log's formats, the manual, and the unit of the robot's service with what is
//! installed beside it.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::MetadataExt,
    path::Path,
    process::Stdio,
    time::Instant,
};

use droidrelay_testkit::net::http;
use rustix::process::Signal;

use crate::common::{Folder, PATIENCE, Running, droidrelay, droidrelay_with_plugins, said};

fn stop(mut running: Running) {
    running.signal(Signal::TERM);
    assert_eq!(running.wait(), Some(0), "{}", running.log);
}

/// The address in the log's line on metrics.
fn metrics_of(running: &mut Running) -> SocketAddr {
    let line = running.wait_for("metrics at http://");
    let address = line.split("http://").nth(1).unwrap();
    address.split('/').next().unwrap().parse().unwrap()
}

fn metrics(address: SocketAddr) -> String {
    let answer = http::request(address, "GET", "/metrics", "").unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body
}

/// Asks until a line is there.
fn wait_metric(address: SocketAddr, line: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let page = metrics(address);
        if page.lines().any(|found| found == line) {
            return page;
        }
        assert!(Instant::now() < deadline, "no {line} in\n{page}");
    }
}

#[test]
fn a_message_of_an_element_opens_the_valve_and_renews_its_lease_while_it_comes() {
    let folder = Folder::new();
    // A loud tone; level posts what it hears ten times a second.
    let launch = folder.launch(
        "audiotestsrc is-live=true volume=0.8 ! level ! fakesink \
         videotestsrc is-live=true ! video/x-raw,width=64,height=48 ! mqttvalve name=valve ! fakesink",
    );
    let mut running = Running::start(droidrelay_with_plugins().arg("run").arg(&launch).args([
        "--trigger",
        "level:lease=2,rms>-30",
        "--metrics",
        "0",
    ]));
    let address = metrics_of(&mut running);
    running.wait_for("level: opens for 2 s");
    running.wait_for("valve: live (local)");
    // Longer than the lease: it is renewed.
    let opened = Instant::now();
    while opened.elapsed().as_secs() < 4 {
        let page = metrics(address);
        assert!(
            page.contains("droidrelay_valve_open{valve=\"valve\"} 1\n"),
            "{page}"
        );
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let page = wait_metric(address, "droidrelay_valve_viewers{valve=\"valve\"} 1");
    assert!(page.contains("droidrelay_trigger_messages_total{trigger=\"level\"} "));
    assert!(!running.log.contains("idle (lease)"), "{}", running.log);
    stop(running);

    // The same line, and a condition that never holds.
    let mut running = Running::start(
        droidrelay_with_plugins()
            .arg("run")
            .arg(&launch)
            .args(["--trigger", "level:lease=2,rms>0", "--metrics", "0"])
            .env("GST_DEBUG", "level:6"),
    );
    let address = metrics_of(&mut running);
    for _ in 0..10 {
        running.wait_for("level");
    }
    wait_metric(address, "droidrelay_valve_open{valve=\"valve\"} 0");
    wait_metric(
        address,
        "droidrelay_trigger_messages_total{trigger=\"level\"} 0",
    );
    stop(running);
}

#[test]
fn a_lease_of_a_trigger_ends_when_no_more_messages_come() {
    let folder = Folder::new();
    let launch = folder.launch(
        "audiotestsrc is-live=true volume=0.8 num-buffers=20 ! level ! fakesink \
         videotestsrc is-live=true ! video/x-raw,width=64,height=48 ! mqttvalve name=valve ! fakesink",
    );
    let mut running = Running::start(
        droidrelay_with_plugins()
            .arg("run")
            .arg(&launch)
            .args(["--trigger", "level:lease=1"]),
    );
    running.wait_for("valve: live (local)");
    running.wait_for("valve: idle (lease)");
    stop(running);
}

#[test]
fn a_bad_trigger_and_one_without_a_valve_are_named() {
    let folder = Folder::new();
    let launch = folder.launch("videotestsrc is-live=true ! fakesink");
    let output = droidrelay()
        .arg("run")
        .arg(&launch)
        .args(["--trigger", "motion"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(
        said(&output).contains("motion:lease=30"),
        "{}",
        said(&output)
    );

    let mut running = Running::start(
        droidrelay()
            .arg("run")
            .arg(&launch)
            .args(["--trigger", "motion:lease=30"]),
    );
    running.wait_for("there is no mqttvalve in the line");
    running.wait_for("playing");
    stop(running);
}

#[test]
fn metrics_are_served_on_this_machine_and_what_is_not_there_is_refused() {
    let folder = Folder::new();
    let launch = folder.launch(
        "videotestsrc is-live=true ! video/x-raw,width=64,height=48 ! mqttvalve drop=false name=valve ! fakesink",
    );
    let mut running = Running::start(
        droidrelay_with_plugins()
            .arg("run")
            .arg(&launch)
            .args(["--metrics", "0"]),
    );
    let address = metrics_of(&mut running);
    assert!(address.ip().is_loopback());
    running.wait_for("playing");
    for line in [
        "droidrelay_playing 1",
        "droidrelay_starts_total 1",
        "droidrelay_stream_state{valve=\"valve\",state=\"live\"} 1",
        "# TYPE droidrelay_valve_passed_buffers_total counter",
        "# TYPE process_resident_memory_bytes gauge",
    ] {
        wait_metric(address, line);
    }
    let ask = |method, path| http::request(address, method, path, "").unwrap().status;
    assert_eq!(ask("GET", "/"), 404);
    assert_eq!(ask("POST", "/metrics"), 405);
    // Somebody who says nothing, and somebody who says nonsense, keep nobody else away.
    let _silent: Vec<TcpStream> = (0..8)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    let mut rude = TcpStream::connect(address).unwrap();
    rude.write_all(b"\x16\x03\x01nonsense\r\n\r\n").unwrap();
    let _ = rude.read(&mut [0; 100]);
    metrics(address);
    // And the end waits for none of them.
    let asked = Instant::now();
    stop(running);
    assert!(asked.elapsed().as_secs() < 2);

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (address, code) in [(taken.as_str(), 69), ("203.0.113.1:1", 69), ("x", 64)] {
        let output = droidrelay_with_plugins()
            .arg("run")
            .arg(&launch)
            .args(["--metrics", address])
            .output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
    }
}

#[test]
fn the_log_is_json_where_that_is_asked_for_with_gstreamers_in_it_and_no_secret() {
    let folder = Folder::new();
    let launch = folder.launch(
        "videotestsrc num-buffers=3 name=${API_TOKEN} ! identity silent=false ! filesink location=/nonexistent/${API_TOKEN}",
    );
    let output = droidrelay()
        .args(["--log-format", "json", "run"])
        .arg(launch)
        .args(["--give-up-after", "1"])
        .env("API_TOKEN", "hunter2")
        .env("GST_DEBUG", "3,basesrc:5")
        .output()
        .unwrap();
    let said = said(&output);
    assert!(!said.contains("hunter2"), "{said}");
    let lines: Vec<serde_json::Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|err| panic!("{err}: {line}")))
        .collect();
    let ours = lines
        .iter()
        .find(|line| line["message"].as_str().unwrap().contains("giving up"))
        .expect("our own line");
    assert_eq!(ours["level"], "error");
    assert!(ours["time"].as_str().unwrap().ends_with('Z'));
    let theirs = lines
        .iter()
        .find(|line| {
            line["object"]
                .as_str()
                .is_some_and(|object| object.contains("***"))
        })
        .expect("GStreamer's line on the element with the secret name");
    assert_eq!(theirs["category"], "basesrc");
    assert!(theirs["source"].as_str().unwrap().contains("gstbasesrc.c:"));
}

#[test]
fn lines_carry_their_priority_where_stderr_is_the_journal() {
    let folder = Folder::new();
    let path = folder.path("journal");
    let journal = File::create(&path).unwrap();
    let stat = journal.metadata().unwrap();
    let launch = folder.launch("videotestsrc num-buffers=1 ! fakesink");
    let run = |stream: String, stderr: Stdio| {
        droidrelay()
            .arg("run")
            .arg(&launch)
            .env("JOURNAL_STREAM", stream)
            .stderr(stderr)
            .output()
            .unwrap()
    };
    run(format!("{}:{}", stat.dev(), stat.ino()), journal.into());
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("<6>INFO playing\n"), "{text}");
    // A service whose stderr leads elsewhere.
    let output = run("1:1".into(), Stdio::piped());
    assert!(said(&output).contains("INFO playing\n"));
    assert!(!said(&output).contains("<6>"));
}

#[test]
fn the_manual_names_every_option_and_completions_are_there_for_each_shell() {
    let say = |arguments: &[&str]| {
        let output = droidrelay().args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let page = say(&["man"]);
    let plain = page.replace("\\-", "-");
    let help = say(&["run", "--help"]);
    let options = help
        .split_whitespace()
        .filter(|word| word.starts_with("--") && word.len() > 4);
    for option in options {
        let option = option.trim_end_matches([',', ')', '.', ';']);
        assert!(plain.contains(option), "{option} is not in the manual");
    }
    for part in [
        ".TH droidrelay 1",
        "EXIT STATUS",
        "COMMAND DOCTOR",
        "ENVIRONMENT",
    ] {
        assert!(page.contains(part), "{part}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let text = say(&["completions", shell]);
        assert!(text.contains("stall-timeout"), "{shell}");
    }
}

fn repository(path: &str) -> String {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    fs::read_to_string(root.join(path)).unwrap()
}

fn has(unit: &str, line: &str) -> bool {
    unit.lines().any(|found| found == line)
}

/// What each kind of camera needs beyond V4L2, and what makes it known when it is plugged in later.
#[test]
fn the_unit_lets_each_kind_of_camera_and_microphone_work() {
    let unit = repository("launcher/systemd/droidrelay@.service");
    for class in ["video4linux", "media", "dma_heap", "drm", "alsa"] {
        let line = format!("DeviceAllow=char-{class} rw");
        assert!(has(&unit, &line), "{line}");
    }
    for module in ["videodev", "snd", "drm"] {
        let service = format!("modprobe@{module}.service");
        for key in ["Wants=", "After="] {
            let found = unit
                .lines()
                .filter_map(|line| line.strip_prefix(key))
                .any(|names| names.split(' ').any(|name| name == service));
            assert!(found, "{key}{service}");
        }
    }
    // libcamera's isolated modules.
    assert!(has(&unit, "RestrictNamespaces=user net"));
    // A Jetson's camera daemon, encoder and memory.
    assert!(has(&unit, "BindPaths=-/tmp/argus_socket"));
    for device in ["char-nvhost*", "char-nvidia*", "/dev/nvmap"] {
        let line = format!("DeviceAllow={device} rw");
        assert!(has(&unit, &line), "{line}");
    }
    let rule = repository("launcher/udev/60-droidrelay.rules");
    assert!(has(
        &rule,
        r#"SUBSYSTEM=="dma_heap", GROUP="video", MODE="0660""#
    ));
}
