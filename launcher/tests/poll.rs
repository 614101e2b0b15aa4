// SPDX-License-Identifier: MPL-2.0

//! `--poll` against a bridge that answers as it is told.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use droidrelay_testkit::certs::{Authority, Identity, Validity};
use rustix::process::Signal;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

use crate::common::{Folder, PATIENCE, Running, droidrelay_with_plugins, said};

/// One request as it came.
#[derive(Debug, Clone)]
struct Asked {
    method: String,
    target: String,
    authorization: String,
    body: String,
}

#[derive(Default)]
struct Inner {
    version: u64,
    leases: Vec<(Value, Option<Instant>)>,
    keyframe: u64,
    /// In place of any answer: status and headers.
    fault: Option<(u16, String)>,
    asked: Vec<Asked>,
    connections: Vec<TcpStream>,
}

/// As the bridge answers a polling robot.
struct Bridge {
    address: SocketAddr,
    inner: Arc<(Mutex<Inner>, Condvar)>,
    ended: Arc<AtomicBool>,
}

impl Bridge {
    fn start(version: u64) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), version)
    }

    fn start_at(address: SocketAddr, version: u64) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let inner: Arc<(Mutex<Inner>, Condvar)> = Arc::default();
        inner.0.lock().unwrap().version = version;
        let bridge = Bridge {
            address: listener.local_addr().unwrap(),
            inner: inner.clone(),
            ended: Arc::default(),
        };
        let ended = bridge.ended.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let inner = inner.clone();
                let kept = stream.try_clone().unwrap();
                inner.0.lock().unwrap().connections.push(kept);
                thread::spawn(move || {
                    let mut reader = BufReader::new(stream);
                    while serve(&mut reader, &inner).is_some() {}
                });
            }
        });
        bridge
    }

    fn url(&self) -> String {
        format!("http://{}/robots/r1/stream", self.address)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.0.lock().unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.lock();
        change(&mut inner);
        inner.version += 1;
        drop(inner);
        self.inner.1.notify_all();
    }

    fn start_lease(&self, id: Value, seconds: Option<u64>) {
        self.change(|inner| {
            inner.leases.retain(|(other, _)| *other != id);
            let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
            inner.leases.push((id, until));
        });
    }

    fn stop_all(&self) {
        self.change(|inner| inner.leases.clear());
    }

    /// Waits for a request of which `wanted` gives something.
    fn wait<T>(&self, what: &str, wanted: impl Fn(&Asked) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut inner = self.lock();
        loop {
            if let Some(found) = inner.asked.iter().find_map(&wanted) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what} has not come: {:#?}", inner.asked);
            inner = self.inner.1.wait_timeout(inner, left).unwrap().0;
        }
    }

    /// Waits for a reported state; what came before it is forgotten.
    fn wait_state(&self, word: &str) -> Value {
        let state = self.wait(word, |asked| {
            let state: Value = serde_json::from_str(&asked.body).ok()?;
            (asked.method == "PUT" && state["state"] == word).then_some(state)
        });
        self.forget();
        state
    }

    fn forget(&self) {
        self.lock().asked.clear();
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        for connection in &self.lock().connections {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
        self.inner.1.notify_all();
    }
}

/// Serves one request; None: no more come.
fn serve(reader: &mut BufReader<TcpStream>, shared: &(Mutex<Inner>, Condvar)) -> Option<()> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_owned());
    }
    let header = |name: &str| {
        head.iter().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    };
    let length = header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let mut words = head.first()?.split(' ');
    let asked = Asked {
        method: words.next()?.to_owned(),
        target: words.next()?.to_owned(),
        authorization: header("authorization").unwrap_or_default(),
        body: String::from_utf8(body).unwrap(),
    };
    let (lock, changed) = shared;
    let mut inner = lock.lock().unwrap();
    inner.asked.push(asked.clone());
    changed.notify_all();
    let (status, more, answer) = if let Some((status, headers)) = inner.fault.clone() {
        (status, headers, String::new())
    } else if asked.method == "PUT" {
        (204, String::new(), String::new())
    } else {
        let since = asked
            .target
            .split("since=")
            .nth(1)
            .and_then(|since| since.parse::<u64>().ok());
        while since == Some(inner.version) && inner.fault.is_none() {
            inner = changed.wait_timeout(inner, PATIENCE).unwrap().0;
        }
        let now = Instant::now();
        inner
            .leases
            .retain(|(_, until)| until.is_none_or(|until| until > now));
        let leases: Vec<Value> = inner
            .leases
            .iter()
            .map(|(id, until)| {
                let left = until.map(|until| (until - now).as_secs_f64());
                json!({ "id": id, "lease": left })
            })
            .collect();
        let answer = json!({
            "robot": "r1",
            "version": inner.version,
            "wanted": { "open": !leases.is_empty(), "leases": leases },
            "keyframe": inner.keyframe,
            "online": true,
            "state": null,
        });
        (200, String::new(), answer.to_string())
    };
    drop(inner);
    let length = if status == 204 {
        String::new()
    } else {
        format!("content-length: {}\r\n", answer.len())
    };
    let answer = format!("HTTP/1.1 {status} X\r\n{more}{length}\r\n{answer}");
    reader.get_mut().write_all(answer.as_bytes()).ok()
}

const LINE: &str = "videotestsrc is-live=true ! video/x-raw,width=64,height=48 ! \
                    mqttvalve name=valve standby=warm ! fakesink";

fn command(folder: &Folder, bridge: &Bridge) -> Command {
    let mut command = droidrelay_with_plugins();
    command
        .arg("run")
        .arg(folder.launch(LINE))
        .args(["--poll", &bridge.url()]);
    command
}

fn stop(mut running: Running) -> String {
    let asked = Instant::now();
    running.signal(Signal::TERM);
    assert_eq!(running.wait(), Some(0), "{}", running.log);
    assert!(asked.elapsed() < Duration::from_secs(2), "{}", running.log);
    running.log.clone()
}

#[test]
fn the_valve_follows_the_bridge_and_the_bridge_hears_the_state() {
    let (folder, bridge) = (Folder::new(), Bridge::start(7));
    let running = Running::start(&mut command(&folder, &bridge));
    bridge.wait_state("idle");

    bridge.start_lease(Value::Null, None);
    let live = bridge.wait_state("live");
    assert_eq!(live["viewers"], json!(["*"]));
    assert_eq!(live["lease_until"], Value::Null);

    bridge.change(|inner| inner.keyframe += 1);
    bridge.wait("the key frame", |asked| {
        asked
            .body
            .contains(r#""last_command":"keyframe""#)
            .then_some(())
    });

    // Another viewer with a lease; the first one leaves.
    bridge.start_lease("phone-7".into(), Some(30));
    bridge.wait("the second viewer", |asked| {
        asked
            .body
            .contains(r#""viewers":["*","phone-7"]"#)
            .then_some(())
    });
    bridge.change(|inner| inner.leases.retain(|(id, _)| !id.is_null()));
    bridge.wait("the second viewer alone", |asked| {
        let alone = asked.body.contains(r#""viewers":["phone-7"]"#);
        (alone && asked.body.contains(r#""state":"live""#)).then_some(())
    });
    bridge.forget();
    bridge.stop_all();
    let idle = bridge.wait_state("idle");
    assert_eq!(idle["cause"], "local");

    // At the end it says that it is idle, though it is not.
    bridge.start_lease(Value::Null, None);
    bridge.wait_state("live");
    stop(running);
    let last = bridge.wait_state("idle");
    assert_eq!(last["viewers"], json!([]));
}

#[test]
fn leases_run_out_by_themselves_while_no_bridge_answers_and_a_new_one_is_followed() {
    let (folder, bridge) = (Folder::new(), Bridge::start(500));
    let mut running = Running::start(&mut command(&folder, &bridge));
    running.wait_for("poll: the bridge answers");
    bridge.start_lease("phone-7".into(), Some(3));
    bridge.start_lease(Value::Null, None);
    bridge.wait("both", |asked| {
        asked
            .body
            .contains(r#""viewers":["*","phone-7"]"#)
            .then_some(())
    });
    let address = bridge.address;
    drop(bridge);
    running.wait_for("next try in");
    // A bridge with smaller numbers, where somebody else looks.
    let bridge = Bridge::start_at(address, 1);
    bridge.start_lease("phone-8".into(), Some(30));
    running.wait_for("poll: the bridge answers");
    let viewers = bridge.wait("what is wanted now", |asked| {
        let state: Value = serde_json::from_str(&asked.body).ok()?;
        let viewers = state["viewers"].as_array()?.clone();
        viewers.contains(&"phone-8".into()).then_some(())?;
        (!viewers.contains(&"*".into())).then_some(viewers)
    });
    assert!(!viewers.contains(&"*".into()), "{viewers:?}");
    assert!(!running.log.contains("idle (lease)"), "{}", running.log);
    drop(bridge);
    stop(running);

    // Nobody comes back: the lease ends all the same.
    let (folder, bridge) = (Folder::new(), Bridge::start(1));
    let mut running = Running::start(&mut command(&folder, &bridge));
    bridge.start_lease("phone-7".into(), Some(2));
    running.wait_for("valve: live");
    drop(bridge);
    running.wait_for("valve: idle (lease)");
    stop(running);
}

#[test]
fn what_was_opened_on_the_robot_is_left_alone() {
    let (folder, bridge) = (Folder::new(), Bridge::start(1));
    let mut running = Running::start(
        droidrelay_with_plugins()
            .arg("run")
            .arg(folder.launch(&LINE.replace("standby=warm", "standby=warm drop=false")))
            .args(["--poll", &bridge.url()]),
    );
    bridge.wait_state("live");
    bridge.start_lease("phone-7".into(), None);
    bridge.wait("both", |asked| {
        asked
            .body
            .contains(r#""viewers":["local","phone-7"]"#)
            .then_some(())
    });
    bridge.stop_all();
    bridge.wait("the local one alone", |asked| {
        asked.body.contains(r#""viewers":["local"]"#).then_some(())
    });
    assert!(!running.log.contains("idle"), "{}", running.log);
    running.signal(Signal::TERM);
    assert_eq!(running.wait(), Some(0));
}

#[test]
fn a_pipeline_that_fails_is_told_and_goes_on_with_the_leases() {
    let (folder, bridge) = (Folder::new(), Bridge::start(1));
    let line = format!(
        "scriptedsrc counter={} script=\"50 error|gone|play\" ! mqttvalve name=valve standby=warm ! fakesink",
        folder.path("starts").display()
    );
    let mut running = Running::start(
        droidrelay_with_plugins()
            .arg("run")
            .arg(folder.launch(&line))
            .args(["--poll", &bridge.url()]),
    );
    bridge.start_lease(Value::Null, None);
    bridge.wait_state("live");
    let failed = bridge.wait_state("error");
    let reason = failed["last_error"].as_str().unwrap();
    assert!(reason.starts_with("scriptedsrc0: "), "{reason}");
    running.wait_for("starting again");
    bridge.wait_state("live");
    stop(running);
}

#[test]
fn credentials_come_from_files_and_show_nowhere() {
    let (folder, bridge) = (Folder::new(), Bridge::start(1));
    let secret = folder.path("secret");
    fs::write(&secret, "hunter2\n").unwrap();
    let basic = ["--poll-user", "robot1", "--poll-password-file"];
    for (options, expected) in [
        (&basic[..], "Basic cm9ib3QxOmh1bnRlcjI="),
        (&["--poll-token-file"], "Bearer hunter2"),
    ] {
        bridge.forget();
        let mut command = command(&folder, &bridge);
        command.args(options).arg(&secret).env("GST_DEBUG", "*:4");
        let mut running = Running::start(&mut command);
        for method in ["GET", "PUT"] {
            bridge.wait(method, |asked| {
                (asked.method == method && asked.authorization == expected).then_some(())
            });
        }
        bridge.lock().fault = Some((401, String::new()));
        bridge.inner.1.notify_all();
        running.wait_for("it refuses the credential (401): check --poll-user");
        // The next connection reads the file anew.
        bridge.forget();
        bridge.change(|inner| inner.fault = None);
        running.wait_for("poll: the bridge answers");
        let log = stop(running);
        assert!(
            !log.contains("hunter2") && !log.contains("cm9ib3Qx"),
            "{log}"
        );
    }
}

#[test]
fn what_a_bridge_refuses_is_named_with_the_remedy_and_a_redirect_is_not_followed() {
    let elsewhere = Bridge::start(1);
    for (status, headers, part) in [
        (403, String::new(), "role = \"robot\""),
        (404, String::new(), "check the name in the URL"),
        (429, "retry-after: 1\r\n".into(), "asked too often"),
        (503, String::new(), "its broker is out of reach"),
        (500, String::new(), "it answers 500"),
        (
            307,
            format!("location: {}?token=hunter2\r\n", elsewhere.url()),
            "give that URL",
        ),
    ] {
        let (folder, bridge) = (Folder::new(), Bridge::start(1));
        bridge.lock().fault = Some((status, headers));
        let mut running = Running::start(&mut command(&folder, &bridge));
        // The state that is not reported may be named ahead of it.
        let line = running.wait_for("next try in ");
        assert!(line.contains(part), "{line}");
        assert!(!line.contains("hunter2"), "{line}");
        // It comes back by itself.
        bridge.change(|inner| inner.fault = None);
        bridge.start_lease(Value::Null, None);
        bridge.wait_state("live");
        stop(running);
    }
    assert!(
        elsewhere.lock().asked.is_empty(),
        "the redirect was followed"
    );
}

/// TLS in front of a bridge; where it listens.
fn with_tls(identity: &Identity, bridge: &Bridge) -> SocketAddr {
    let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes())
        .collect::<Result<_, _>>()
        .unwrap();
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let (address, behind) = (listener.local_addr().unwrap(), bridge.address);
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // A client that does not trust us breaks off.
                    let mut stream = acceptor.accept(stream).await?;
                    let mut bridge = tokio::net::TcpStream::connect(behind).await?;
                    tokio::io::copy_bidirectional(&mut stream, &mut bridge).await
                });
            }
        });
    });
    address
}

#[test]
fn a_bridge_with_tls_is_followed_where_its_certificate_holds_and_named_where_not() {
    let (folder, bridge) = (Folder::new(), Bridge::start(1));
    let authority = Authority::new().unwrap();
    let ca = authority.write(folder.0.path()).unwrap();
    let identity = authority.server(&["localhost"], Validity::Now).unwrap();
    let port = with_tls(&identity, &bridge).port();
    let run = |host: &str, trusted: bool| {
        let mut command = droidrelay_with_plugins();
        let url = format!("https://{host}:{port}/robots/r1/stream");
        command
            .arg("run")
            .arg(folder.launch(LINE))
            .args(["--poll", &url]);
        if trusted {
            command.arg("--poll-ca-file").arg(&ca);
        }
        Running::start(&mut command)
    };
    let running = run("localhost", true);
    bridge.start_lease(Value::Null, None);
    bridge.wait_state("live");
    stop(running);
    bridge.forget();
    for (host, trusted, part) in [
        ("localhost", false, "set ca-file"),
        ("127.0.0.1", true, "reach the server by a name in it"),
    ] {
        let mut running = run(host, trusted);
        running.wait_for(part);
        stop(running);
    }
    assert!(bridge.lock().asked.is_empty(), "asked without trust");
}

#[test]
fn options_that_do_not_fit_are_refused_before_anything_starts() {
    let folder = Folder::new();
    let launch = folder.launch(LINE);
    for (options, code, part) in [
        (
            &["--poll", "https://u:hunter2@cloud.example/x"][..],
            64,
            "credentials",
        ),
        (&["--poll", "cloud.example"], 64, "https://host/path"),
        (&["--poll-user", "robot1"], 64, "--poll"),
        (
            &["--poll", "http://h/x", "--poll-user", "a"],
            64,
            "--poll-password-file",
        ),
        (
            &["--poll", "http://h/x", "--poll-token-file", "/nonexistent"],
            78,
            "/nonexistent",
        ),
        (
            &["--poll", "https://h/x", "--poll-ca-file", "/nonexistent"],
            78,
            "/nonexistent",
        ),
    ] {
        let output = droidrelay_with_plugins()
            .arg("run")
            .arg(&launch)
            .args(options)
            .output()
            .unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(code), "{options:?}: {said}");
        assert!(said.contains(part), "{options:?}: {said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}
