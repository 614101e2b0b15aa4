// SPDX-License-Identifier: MPL-2.0

//! RTMP servers that package registries have, where they are installed: beside nginx-rtmp and
//! MediaMTX, to see that others take a stream too. `scripts/install-servers.sh` installs them.

use std::{
    env, fmt,
    io::{self, Write},
    path::PathBuf,
    process::Command,
    thread,
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::relay::answers_rtmp;
use crate::{
    certs::write_private,
    process::{Process, free_port, on_free_ports, program_of},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Other {
    /// node-media-server 4, of npm, in the folder that `NODE_MEDIA_SERVER` names.
    NodeMediaServer,
    /// lal, a Go module: the program that `LALSERVER` names.
    Lal,
}

impl Other {
    pub const ALL: [Other; 2] = [Other::NodeMediaServer, Other::Lal];

    fn variable(self) -> &'static str {
        match self {
            Other::NodeMediaServer => "NODE_MEDIA_SERVER",
            Other::Lal => "LALSERVER",
        }
    }

    fn find(self) -> Option<PathBuf> {
        let path = env::var_os(self.variable()).filter(|path| !path.is_empty())?;
        Some(path.into())
    }

    /// Whether a test must do without this server; says so past the test harness's capture.
    pub fn notice_if_absent(self) -> bool {
        let absent = self.find().is_none();
        if absent {
            let test = thread::current();
            let _ = writeln!(
                io::stderr(),
                "SKIPPED {} with {self}: {} is not set: run scripts/install-servers.sh",
                test.name().unwrap_or_default(),
                self.variable()
            );
        }
        absent
    }

    fn launch(self, folder: &TempDir, rtmp: u16, other: u16) -> Result<Process> {
        let found = self
            .find()
            .with_context(|| format!("{} is not set", self.variable()))?;
        let mut command = match self {
            Other::NodeMediaServer => {
                let script = format!(
                    "const Server = require('node-media-server');\n\
                     new Server({{bind: '127.0.0.1', notify: {{url: ''}}, rtmp: {{port: {rtmp}}}, \
                     http: {{port: {other}}}, store: {{path: './data'}}, auth: {{play: false, \
                     publish: false, secret: '', jwt: {{secret: 's', users: []}}}}, \
                     record: {{auto: false, path: './record'}}}}).run();\n"
                );
                write_private(folder.path(), "server.js", &script)?;
                let mut command = Command::new(program_of("node", "nodejs")?);
                command.env("NODE_PATH", found.join("node_modules"));
                command.arg("server.js");
                command
            }
            Other::Lal => {
                let config = format!(
                    r#"{{"conf_version": "v0.4.1",
                    "rtmp": {{"enable": true, "addr": "127.0.0.1:{rtmp}"}},
                    "http_api": {{"enable": true, "addr": "127.0.0.1:{other}"}},
                    "log": {{"level": 1, "filename": "./lal.log", "is_to_stdout": true}}}}"#
                );
                write_private(folder.path(), "lal.json", &config)?;
                let mut command = Command::new(found);
                command.args(["-c", "lal.json"]);
                command
            }
        };
        command.current_dir(folder.path());
        let mut process = Process::spawn(&self.to_string(), &mut command)?;
        process.wait_ready(|| answers_rtmp(rtmp))?;
        Ok(process)
    }
}

impl fmt::Display for Other {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Other::NodeMediaServer => "node-media-server",
            Other::Lal => "lal",
        })
    }
}

/// A running one, which lets everybody publish and read.
pub struct OtherServer {
    process: Process,
    port: u16,
    _folder: TempDir,
}

impl OtherServer {
    pub fn start(kind: Other) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("server-").tempdir()?;
        let (process, port) = on_free_ports(|| {
            let (rtmp, other) = (free_port()?, free_port()?);
            Ok((kind.launch(&folder, rtmp, other)?, rtmp))
        })?;
        Ok(OtherServer {
            process,
            port,
            _folder: folder,
        })
    }

    /// Where the stream `name` is published and read.
    pub fn url(&self, name: &str) -> String {
        format!("rtmp://127.0.0.1:{}/live/{name}", self.port)
    }

    pub fn text(&self) -> String {
        self.process.text()
    }
}
