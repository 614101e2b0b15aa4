// SPDX-License-Identifier: MPL-2.0

//! Logins: by challenge, for this element and other publishers, and by password files.

use super::*;

fn adobe(opaque: bool) -> Challenge {
    Challenge::Adobe {
        salt: "WvviAT4cmEkeosgbQXFJTodwlqtZjBC5".into(),
        challenge: "KqLT7N==".into(),
        opaque: opaque.then(|| "vgoAAA==".into()),
    }
}

fn limelight() -> Challenge {
    Challenge::Limelight {
        nonce: "b2c3d4e5f6a7".into(),
    }
}

fn login(challenge: Challenge) -> Access {
    Access::Login {
        user: USER.into(),
        password: PASSWORD.into(),
        challenge,
        at_once: false,
    }
}

#[test]
fn each_kind_of_challenge_is_answered() {
    let password = format!("credential-mode=rtmp password=\"{PASSWORD}\"");
    for (challenge, name) in [
        (adobe(true), "adobe"),
        (adobe(false), "adobe"),
        (limelight(), "llnw"),
    ] {
        let server = Server::start(login(challenge));
        let line = line(&server, &password);
        line.wait(State::Publishing);
        server
            .seen()
            .wait(0, "video", |seen| *seen == Seen::Video)
            .unwrap();
        let introduced = format!("live?authmod={name}&user={USER}");
        let answered = format!("{introduced}&…");
        assert_eq!(
            asked(&server, 0),
            ["live", introduced.as_str(), answered.as_str()]
        );
        let publish = Seen::Publish("stream".into());
        assert!(server.seen().all().contains(&publish));

        // The next session knows the way.
        let mark = server.seen().mark();
        line.play_anew();
        let again = |seen: &Seen| *seen == publish;
        server.seen().wait(mark, "a second session", again).unwrap();
        assert_eq!(asked(&server, mark), [introduced, answered]);
        assert_eq!(line.error(), "");
    }
}

#[test]
fn a_challenge_that_comes_at_once_is_answered() {
    let server = Server::start(Access::Login {
        user: USER.into(),
        password: PASSWORD.into(),
        challenge: adobe(true),
        at_once: true,
    });
    let password = format!("credential-mode=rtmp password=\"{PASSWORD}\"");
    line(&server, &password).wait(State::Publishing);
    assert_eq!(asked(&server, 0).len(), 2);
}

#[test]
fn a_server_without_a_login_is_published_to_all_the_same() {
    let server = Server::start(Access::Everybody);
    line(&server, "credential-mode=rtmp password=x").wait(State::Publishing);
    assert_eq!(asked(&server, 0), ["live"]);
}

#[test]
fn a_wrong_password_is_named_and_mended_without_a_restart() {
    for challenge in [adobe(true), limelight()] {
        let server = Server::start(login(challenge));
        let folder = tempfile::tempdir().unwrap();
        let file = write_private(folder.path(), "pass", "a-wrong-one").unwrap();
        let more = format!("credential-mode=rtmp password-file={}", file.display());
        let line = line(&server, &more);
        line.wait(State::Refused);
        let error = line.error();
        assert!(error.contains("password-file"), "{error}");
        assert!(error.contains("authfailed"), "{error}");
        write_private(folder.path(), "pass", PASSWORD).unwrap();
        line.wait(State::Publishing);
    }
}

#[test]
fn a_server_that_is_never_satisfied_is_a_refusal() {
    for description in [
        "[ AccessManager.Reject ] : [ code=403 need auth; authmod=adobe ] : ",
        "[ AccessManager.Reject ] : [ authmod=adobe ] : ?reason=needauth&salt=s&challenge=c",
    ] {
        let server = Server::start(Access::Nobody(description));
        let line = line(&server, "credential-mode=rtmp password=x");
        line.wait(State::Refused);
        assert!(line.error().contains("check user and password"));
    }
    let server = Server::start(Access::Nobody("[ authmod=other ] : ?reason=needauth"));
    let line = line(&server, "credential-mode=rtmp password=x");
    line.wait(State::Refused);
    assert!(line.error().contains("authmod=other"), "{}", line.error());
}

#[test]
fn a_demand_for_a_login_tells_the_mode_to_set() {
    let server = Server::start(login(limelight()));
    let line = line(&server, "password=x");
    line.wait(State::Refused);
    let error = line.error();
    assert!(
        error.contains("authmod=llnw") && error.contains("credential-mode=rtmp"),
        "{error}"
    );
}

/// Somebody else's clients agree on what the right answer is.
#[test]
fn ffmpeg_is_let_in_by_the_same_challenges() {
    for (challenge, password, accepted) in [
        (adobe(true), "hunter2", true),
        (adobe(false), "hunter2", true),
        (limelight(), "hunter2", true),
        (adobe(true), "hunter3", false),
        (limelight(), "hunter3", false),
    ] {
        let server = Server::start(Access::Login {
            user: "pub".into(),
            password: "hunter2".into(),
            challenge,
            at_once: false,
        });
        let url = server
            .url()
            .replace("rtmp://", &format!("rtmp://pub:{password}@"));
        let picture = "testsrc=size=64x48:rate=10";
        let mut command = Command::new(program_of("ffmpeg", "ffmpeg").unwrap());
        command.args(["-v", "warning", "-re", "-f", "lavfi", "-i", picture]);
        command.args(["-c:v", "libx264", "-f", "flv", &url]);
        let ffmpeg = Process::spawn("ffmpeg", &mut command).unwrap();
        let wanted = |seen: &Seen| match seen {
            Seen::Publish(_) => accepted,
            Seen::Rejected(description) => !accepted && description.contains("authfailed"),
            _ => false,
        };
        let seen = server.seen().wait(0, "ffmpeg", wanted);
        seen.unwrap_or_else(|err| panic!("{err}\n{}", ffmpeg.text()));
    }
}

#[test]
fn rtmp2sink_is_let_in_by_the_same_challenge() {
    let server = Server::start(Access::Login {
        user: "pub".into(),
        password: "hunter2".into(),
        challenge: adobe(true),
        at_once: false,
    });
    let url = server.url().replace("rtmp://", "rtmp://pub:hunter2@");
    let _line = Line::start(&format!(
        "flvmux streamable=true ! rtmp2sink async=false location={url}"
    ));
    let video = |seen: &Seen| *seen == Seen::Video;
    server.seen().wait(0, "video", video).unwrap();
    assert_eq!(asked(&server, 0).len(), 3);
}

#[test]
fn a_password_file_that_is_no_file_is_refused_at_once() {
    let server = Server::start(Access::Everybody);
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    let line = Line::of(&format!(
        "fakesrc ! video/x-h264,stream-format=avc,alignment=au \
         ! rtmpauthsink name=sink location={} user=u password-file={}",
        server.url(),
        fifo.display()
    ));
    let began = Instant::now();
    let refused = line.sink.set_state(gst::State::Ready);
    assert!(refused.is_err());
    line.sink.set_state(gst::State::Null).unwrap();
    assert!(began.elapsed() < Duration::from_secs(1));
    let bus = line.pipeline.bus().unwrap();
    let error = bus.pop_filtered(&[gst::MessageType::Error]).unwrap();
    let gst::MessageView::Error(error) = error.view() else {
        unreachable!()
    };
    let text = error.error().to_string();
    assert!(
        text.contains("fifo") && text.contains("regular file"),
        "{text}"
    );
}
