//! What a client writes on its connection to the bridge, credentials or not: an answer or an end,
//! but never a panic, never a 5xx other than the 503 of a broker that is not there, and never a
//! secret in what it is told.
#![no_main]

use std::{net::SocketAddr, path::Path, sync::Arc};

use droidrelay_bridge::{app, serve, Bridge, Config};
use libfuzzer_sys::fuzz_target;
use tokio::{
    io::{duplex, AsyncReadExt, AsyncWriteExt},
    runtime::{Builder, Runtime},
};

/// More than any answer but the page.
const PIPE: usize = 64 * 1024;
const PEER: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 50000);
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

thread_local! {
    static SERVED: Served = {
        // Whoever is waited for comes, or is given up, at once.
        let runtime = Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let text = CONFIG.replace('@', DIGEST);
        let config = Config::parse(&text, Path::new("bridge.toml"), |_| None).unwrap();
        let bridge = Bridge::start(config, runtime.handle()).unwrap();
        Served { runtime, bridge }
    };
}

fuzz_target!(|said: &[u8]| {
    let answer = SERVED.with(|served| {
        served.runtime.block_on(async {
            let (mut client, server) = duplex(PIPE);
            let bridge = &served.bridge;
            let serving = serve::http(server, PEER, app(bridge.clone()), bridge.closing());
            let asking = async {
                client.write_all(said).await.unwrap_or_default();
                client.shutdown().await.unwrap_or_default();
                let mut answer = Vec::new();
                client
                    .take(PIPE as u64)
                    .read_to_end(&mut answer)
                    .await
                    .unwrap_or_default();
                answer
            };
            tokio::join!(serving, asking).1
        })
    });
    let text = String::from_utf8_lossy(&answer);
    for line in text.lines().filter(|line| line.starts_with("HTTP/1.1 ")) {
        assert!(
            !line.starts_with("HTTP/1.1 5") || line.starts_with("HTTP/1.1 503"),
            "{text}"
        );
    }
    assert!(!text.contains(DIGEST), "{text}");
});
