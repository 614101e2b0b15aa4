// SPDX-License-Identifier: MPL-2.0

//! The bridge as a service of systemd.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// Ends a test that fails; a good one never gets near it.
const DEADLINE: Duration = Duration::from_secs(20);

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn systemd_is_told_ready_alive_and_stopping_whether_or_not_there_is_a_broker() {
    let folder = std::env::temp_dir().join(format!("droidrelay-notify-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let config = folder.join("bridge.toml");
    fs::write(
        &config,
        "listen = \"127.0.0.1:0\"\n[mqtt]\nbroker = \"mqtt://127.0.0.1:1\"\n",
    )
    .unwrap();
    let path = folder.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut bridge = Ended(
        Command::new(env!("CARGO_BIN_EXE_droidrelay-bridge"))
            .arg("--config")
            .arg(&config)
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "200000")
            .env_remove("WATCHDOG_PID")
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let next = || {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
    };
    assert_eq!(next(), "READY=1");
    for _ in 0..3 {
        assert_eq!(next(), "WATCHDOG=1");
    }
    let id = bridge.0.id().to_string();
    let sent = Command::new("kill").args(["-TERM", &id]).status().unwrap();
    assert!(sent.success());
    while next() != "STOPPING=1" {}
    assert!(bridge.0.wait().unwrap().success());
    fs::remove_dir_all(folder).unwrap();
}
