// SPDX-License-Identifier: MPL-2.0

//! What a client writes on its connection to the bridge, credentials or not: an answer or an end,
//! but never a panic, never a 5xx other than the 503 of a broker that is not there, and never a
//! secret in what it is told.
#![no_main]

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use droidrelay_bridge::{Bridge, Config, app, serve};
use libfuzzer_sys::fuzz_target;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    runtime::{Builder, Runtime},
    time::timeout,
};

/// Who listens to events is told that nothing happens for as long as they listen.
const LISTENS: Duration = Duration::from_secs(120);
/// More than any answer but the page.
const PIPE: usize = 64 * 1024;
const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 50000);
/// `admin:hunter2hunter2`, `robot:…`, `mediamtx:…` and `viewer:…` come in with this password.
const CONFIG: &str = r#"
[mqtt]
broker = "mqtt://127.0.0.1:9"
ack-timeout = 1
[failures]
burst = 4294967295
[robots]
topic = "robots/{robot}/stream"
path = "live/{robot}"
default = "r1"
[mediamtx]
read-starts = true
[[user]]
name = "admin"
role = "admin"
password = "sha256:@"
[[user]]
name = "robot"
role = "robot"
robots = ["r1"]
password = "sha256:@"
[[user]]
name = "mediamtx"
role = "mediamtx"
password = "sha256:@"
[[user]]
name = "viewer"
role = "viewer"
password = "sha256:@"
"#;
const DIGEST: &str = "dogNYBka87P4A6ZWt3FvAXmSg1f8MkIc7Zc+0mXhVxg=";

struct Served {
    runtime: Runtime,
    bridge: Arc<Bridge>,
}

/// Somebody whom the bridge knows is answered: so are inputs like it.
const KNOWN: &[u8] = b"GET /robots HTTP/1.1\r\nHost: h\r\n\
    Authorization: Basic dmlld2VyOmh1bnRlcjJodW50ZXIy\r\n\r\n";

impl Served {
    fn start() -> Self {
        // Whoever is waited for comes, or is given up, at once.
        let runtime = Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let text = CONFIG.replace('@', DIGEST);
        let config = Config::parse(&text, Path::new("bridge.toml"), |_| None).unwrap();
        let bridge = Bridge::start(config, runtime.handle()).unwrap();
        let served = Served { runtime, bridge };
        assert!(served.answer(KNOWN).starts_with(b"HTTP/1.1 200 "));
        served
    }

    /// What the client is told that says this on a connection of its own.
    fn answer(&self, said: &[u8]) -> Vec<u8> {
        self.runtime.block_on(async {
            let (mut client, server) = duplex(PIPE);
            let bridge = &self.bridge;
            let serving = serve::http(server, PEER, app(bridge.clone()), bridge.closing());
            let asking = async {
                // Not closed: who hangs up is not answered. The bridge's patience ends it.
                client.write_all(said).await.unwrap_or_default();
                let mut answer = Vec::new();
                let mut client = client.take(PIPE as u64);
                let reading = client.read_to_end(&mut answer);
                let _ = timeout(LISTENS, reading).await;
                answer
            };
            tokio::join!(serving, asking).1
        })
    }
}

thread_local! {
    static SERVED: Served = Served::start();
}

fuzz_target!(|said: &[u8]| {
    let answer = SERVED.with(|served| served.answer(said));
    let text = String::from_utf8_lossy(&answer);
    for line in text.lines().filter(|line| line.starts_with("HTTP/1.1 ")) {
        assert!(
            !line.starts_with("HTTP/1.1 5") || line.starts_with("HTTP/1.1 503"),
            "{text}"
        );
    }
    assert!(!text.contains(DIGEST), "{text}");
});
