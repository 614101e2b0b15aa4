// SPDX-License-Identifier: MPL-2.0

//! The launcher as a process, with real pipelines.

use std::{
    fs,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::common::{Folder, Running, Systemd, droidrelay, said};

fn check(text: &str) -> (Option<i32>, String) {
    let folder = Folder::new();
    let output = droidrelay()
        .arg("check")
        .arg(folder.launch(text))
        .output()
        .unwrap();
    (output.status.code(), said(&output))
}

#[test]
fn a_line_ends_by_sigterm_in_time_with_its_file_complete() {
    for signal in [Signal::TERM, Signal::INT] {
        let folder = Folder::new();
        let file = folder.path("a b.mkv");
        let launch = folder.launch(
            "videotestsrc is-live=true ! # the camera\n video/x-raw,width=${W},height=48 \\\n ! matroskamux ! filesink location=${FILE}\n",
        );
        let mut running = Running::start(
            droidrelay()
                .arg("run")
                .arg(launch)
                .args(["--set", "W=64", "--set"])
                .arg(format!("FILE={}", file.display())),
        );
        running.wait_for("playing");
        let asked = Instant::now();
        running.signal(signal);
        assert_eq!(running.wait(), Some(0), "{}", running.log);
        assert!(asked.elapsed() < Duration::from_secs(2), "{}", running.log);
        // The muxer writes the duration (EBML id 0x4489) into the header at EOS only.
        let bytes = fs::read(&file).unwrap();
        let at = bytes
            .windows(3)
            .position(|window| window == [0x44, 0x89, 0x88])
            .expect("a duration in the header");
        let duration = f64::from_be_bytes(bytes[at + 3..at + 11].try_into().unwrap());
        assert!(duration > 0.0, "duration {duration}");
    }
}

#[test]
fn faults_of_the_line_are_named_with_line_column_and_remedy() {
    for (text, code, at, part) in [
        (
            "videotestsrc !\n  nosuchthing ! fakesink",
            65,
            ":2:3:",
            "no element \"nosuchthing\"",
        ),
        (
            "gst-launch-1.0 fakesrc ! fakesink",
            65,
            ":1:1:",
            "write only the pipeline",
        ),
        (
            "fakesrc num-buffers=1 ! queue ! \n # x\n fakesink num-buffer=1",
            65,
            ":3:11:",
            "gst-inspect-1.0 fakesink",
        ),
        (
            "fakesrc ! queue\n leaky=sometimes ! fakesink",
            65,
            ":2:8:",
            "GstQueueLeaky",
        ),
        (
            "fakesrc num-buffers=${N:-many} ! fakesink",
            65,
            ":1:21:",
            "gint",
        ),
        (
            "fakesrc ! ! fakesink",
            65,
            ":1:11:",
            "each ! stands between",
        ),
        (
            "fakesrc !\n fakesink !",
            65,
            ":2:11:",
            "each ! stands between",
        ),
        (
            "fakesrc ! tee name=t\n x. ! fakesink",
            65,
            ":2:2:",
            "name=x",
        ),
        (
            "videotestsrc !\n audioconvert ! fakesink",
            65,
            ":2:2:",
            "could not link",
        ),
        (
            "videotestsrc\n ! foo/bar baz ! fakesink",
            65,
            ":2:4:",
            "foo/bar",
        ),
        (
            "fakesrc ! fakesink name=${NO_SUCH_NAME}",
            78,
            ":1:25:",
            "--set NO_SUCH_NAME=…",
        ),
        ("fakesrc ! \"fakesink", 65, ":1:11:", "not closed"),
        ("# nothing\n", 65, ":2:1:", "no pipeline"),
    ] {
        let (got, said) = check(text);
        assert_eq!(got, Some(code), "{text:?}: {said}");
        assert!(
            said.contains(&format!("line.launch{at}")),
            "{text:?}: {said}"
        );
        assert!(said.contains(part), "{text:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    assert_eq!(check("fakesrc ! fakesink").0, Some(0));
}

#[test]
fn the_command_line_has_the_exit_codes_of_sysexits() {
    let code = |arguments: &[&str]| {
        let output = droidrelay().args(arguments).output().unwrap();
        output.status.code().unwrap()
    };
    assert_eq!(code(&["--version"]), 0);
    assert_eq!(code(&["--help"]), 0);
    assert_eq!(code(&[]), 64);
    assert_eq!(code(&["run"]), 64);
    assert_eq!(code(&["run", "x", "--on-eos=perhaps"]), 64);
    assert_eq!(code(&["check", "/nonexistent.launch"]), 66);
}

#[test]
fn a_secret_is_refused_on_the_command_line_and_masked_everywhere() {
    let folder = Folder::new();
    let launch = folder.launch(
        "fakesrc name=${NAME:-x} ! filesink location=/nonexistent/${RTMP_PASS}/${mqtt.key}",
    );
    let output = droidrelay()
        .arg("check")
        .arg(&launch)
        .args(["--set", "RTMP_PASS=hunter2"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(said(&output).contains("CREDENTIALS_DIRECTORY"));
    assert!(!said(&output).contains("hunter2"));

    fs::write(folder.path("mqtt.key"), "correct horse\n").unwrap();
    let output = droidrelay()
        .arg("run")
        .arg(&launch)
        .args(["--give-up-after", "1"])
        .env("RTMP_PASS", "hunter2")
        .env("CREDENTIALS_DIRECTORY", folder.0.path())
        .output()
        .unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("/nonexistent/***/***"), "{said}");
    assert!(
        !said.contains("hunter2") && !said.contains("correct horse"),
        "{said}"
    );
}

#[test]
fn gstreamers_own_log_does_not_show_what_the_parser_reads() {
    let folder = Folder::new();
    // A plugin that is loaded while the line is parsed turns the log on again.
    let launch = folder.launch("videotestsrc ! filesink location=/nonexistent/${RTMP_PASS}");
    let output = droidrelay()
        .arg("check")
        .arg(launch)
        .env("RTMP_PASS", "hunter2 \"!")
        // That element logs its location, a password would not be put there.
        .env("GST_DEBUG", "*:9,filesink:0,GST_URI:0")
        .output()
        .unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("videotestsrc"), "{said}");
    let shown: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("hunter2"))
        .collect();
    assert!(shown.is_empty(), "{shown:#?}");
}

#[test]
fn what_elements_call_a_password_is_masked_under_whatever_name() {
    // `srtsink passphrase`, `rtspsrc user-pw` and `proxy-pw`, and a proxy with a login in it.
    for secret in [
        "rtspsrc user-pw=hunter2",
        "rtspsrc proxy-pw=hunter2",
        "rtspsrc proxy=me:hunter2@h",
        "srtsrc passphrase=hunter2hunter2",
    ] {
        let (_, value) = secret.split_once('=').unwrap();
        let (code, said) = check(&format!("{secret} ! fakesink sync={value}"));
        assert_eq!(code, Some(65), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
        assert!(said.contains("***"), "{said}");
    }
}

#[test]
fn a_value_of_a_secret_property_is_not_echoed() {
    let (code, said) = check("fakesrc ! fakesink password=hunter2 token=hunter3");
    assert_eq!(code, Some(65), "{said}");
    assert!(said.contains("no property"), "{said}");
    assert!(!said.contains("hunter"), "{said}");
}

#[test]
fn an_erroring_line_restarts_with_back_off_then_anew_then_gives_up() {
    let folder = Folder::new();
    let launch = folder.launch("filesrc location=/nonexistent ! fakesink");
    let mut running = Running::start(
        droidrelay()
            .arg("run")
            .arg(launch)
            .args(["--give-up-after", "4"]),
    );
    running.wait_for("failure 1 in a row, next try in 0.");
    let first = Instant::now();
    running.wait_for("starting again");
    assert!(first.elapsed() >= Duration::from_millis(200));
    running.wait_for("failure 2 in a row, next try in ");
    let second = Instant::now();
    running.wait_for("starting again");
    assert!(second.elapsed() >= Duration::from_millis(400));
    running.wait_for("failure 3 in a row, next try in ");
    running.wait_for("starting a new pipeline");
    running.wait_for("4 failures in a row: giving up");
    assert_eq!(running.wait(), Some(69), "{}", running.log);
}

#[test]
fn an_error_while_playing_restarts_and_sigterm_in_the_back_off_ends_at_once() {
    let folder = Folder::new();
    let launch = folder.launch("videotestsrc is-live=true ! identity error-after=3 ! fakesink");
    let mut running = Running::start(droidrelay().arg("run").arg(launch));
    running.wait_for("playing");
    running.wait_for("failure 1 in a row");
    running.wait_for("playing");
    running.wait_for("failure 2 in a row");
    running.signal(Signal::TERM);
    assert_eq!(running.wait(), Some(0), "{}", running.log);
}

#[test]
fn a_pipeline_that_hangs_on_its_way_down_ends_the_process() {
    let folder = Folder::new();
    // The sleep of `identity` cannot be interrupted, the error comes from the other branch.
    let launch = folder.launch(
        "videotestsrc is-live=true ! tee name=t ! queue ! identity sleep-time=60000000 ! fakesink \
         t. ! queue ! identity error-after=5 ! fakesink async=false",
    );
    let mut running = Running::start(droidrelay().arg("run").arg(launch));
    running.wait_for("SetState(Null) hangs");
    assert_eq!(running.wait(), Some(70), "{}", running.log);
}

#[test]
fn a_hung_pipeline_does_not_hold_sigterm_up_nor_a_second_signal() {
    let folder = Folder::new();
    let launch = folder.launch(
        "videotestsrc is-live=true ! queue ! identity name=i sleep-time=60000000 ! fakesink async=false",
    );
    for second in [false, true] {
        let mut running = Running::start(
            droidrelay()
                .arg("run")
                .arg(&launch)
                .env("GST_DEBUG", "basetransform:5"),
        );
        // From here on the streaming thread sleeps.
        running.wait_for("doing passthrough transform_ip");
        let asked = Instant::now();
        running.signal(Signal::TERM);
        if second {
            running.wait_for("ending: asked");
            running.signal(Signal::TERM);
        }
        let expected = if second { 128 + 15 } else { 70 };
        assert_eq!(running.wait(), Some(expected), "{}", running.log);
        assert!(asked.elapsed() < Duration::from_secs(2), "{}", running.log);
    }
}

#[test]
fn the_end_of_the_stream_ends_or_restarts_as_asked() {
    let folder = Folder::new();
    let launch = folder.launch("videotestsrc num-buffers=3 ! fakesink");
    let output = droidrelay().arg("run").arg(&launch).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));

    let mut running = Running::start(
        droidrelay()
            .arg("run")
            .arg(&launch)
            .args(["--on-eos", "restart"]),
    );
    for _ in 0..3 {
        running.wait_for("playing");
        running.wait_for("end of stream");
    }
    running.signal(Signal::TERM);
    assert_eq!(running.wait(), Some(0), "{}", running.log);
}

#[test]
fn systemd_hears_ready_status_watchdog_and_stopping() {
    let folder = Folder::new();
    let systemd = Systemd::listen(&folder.path("notify"));
    let launch = folder.launch("videotestsrc is-live=true ! fakesink");
    let mut running = Running::start(
        droidrelay()
            .arg("run")
            .arg(launch)
            .env("NOTIFY_SOCKET", folder.path("notify"))
            .env("WATCHDOG_USEC", "200000"),
    );
    systemd.wait_for("EXTEND_TIMEOUT_USEC=");
    systemd.wait_for("STATUS=playing");
    systemd.wait_for("READY=1");
    systemd.wait_for("WATCHDOG=1");
    systemd.wait_for("WATCHDOG=1");
    running.signal(Signal::TERM);
    systemd.wait_for("STOPPING=1");
    assert_eq!(running.wait(), Some(0), "{}", running.log);
}
