// SPDX-License-Identifier: MPL-2.0

//! Child processes: ended by handle, their output kept and shown only where something fails.

use std::{
    env,
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process, set_parent_process_death_signal};

use crate::journal::{DEADLINE, Journal};

/// How long a process may take to end by itself when its owner goes.
const END: Duration = Duration::from_secs(2);

/// A running program and every line it wrote.
pub struct Process {
    name: String,
    child: Child,
    log: Journal<String>,
    keepers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts `command`; what it writes goes into the log.
    pub fn spawn(name: &str, command: &mut Command) -> Result<Self> {
        Self::spawn_into(name, command, Journal::default())
    }

    /// As [`Process::spawn`], into a log that the caller has made (to listen from the start).
    pub fn spawn_into(name: &str, command: &mut Command, log: Journal<String>) -> Result<Self> {
        command.stdin(Stdio::null());
        let (mut process, stdout) = Self::launch(name, command, log)?;
        process.keepers.push(keep(stdout, process.log.clone()));
        Ok(process)
    }

    /// As [`Process::spawn`]; the caller writes the program's standard input.
    pub fn spawn_with_input(name: &str, command: &mut Command) -> Result<(Self, ChildStdin)> {
        command.stdin(Stdio::piped());
        let (mut process, stdout) = Self::launch(name, command, Journal::default())?;
        process.keepers.push(keep(stdout, process.log.clone()));
        let stdin = process.child.stdin.take().context("no standard input")?;
        Ok((process, stdin))
    }

    /// As [`Process::spawn`]; the program's standard output is the caller's.
    pub fn spawn_with_output(name: &str, command: &mut Command) -> Result<(Self, ChildStdout)> {
        command.stdin(Stdio::null());
        Self::launch(name, command, Journal::default())
    }

    fn launch(
        name: &str,
        command: &mut Command,
        log: Journal<String>,
    ) -> Result<(Self, ChildStdout)> {
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A terminal's Ctrl-C goes to the owner alone, which ends its children in order.
            .process_group(0);
        // SAFETY: prctl is async-signal-safe and touches nothing of the parent.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::INT))?));
        }
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {program}; install or build it"))?;
        let stderr = child.stderr.take().context("no standard error")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let process = Process {
            name: name.to_owned(),
            child,
            keepers: vec![keep(stderr, log.clone())],
            log,
        };
        Ok((process, stdout))
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> &Journal<String> {
        &self.log
    }

    /// Everything written so far, for an error message.
    pub fn text(&self) -> String {
        format!("--- {}:\n{}", self.name, self.log.all().join("\n"))
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.id()).ok().and_then(Pid::from_raw) {
            // Where it has ended there is nobody to signal.
            let _ = kill_process(pid, signal);
        }
    }

    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for the process to end by itself; its log is whole then.
    pub fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let status = poll(patience, || self.has_ended())?;
        // Not for ever: a child of its own may hold the pipes open.
        poll(END, || {
            let mut keepers = self.keepers.iter();
            keepers.all(JoinHandle::is_finished).then_some(())
        });
        Some(status)
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends `signal` and waits for the end.
    pub fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal);
        match self.wait(DEADLINE) {
            Some(status) => Ok(status),
            None => bail!("{} does not end\n{}", self.name, self.text()),
        }
    }

    /// Asks `ready` until it is; fails when the process ends or the deadline passes.
    pub fn wait_ready(&mut self, ready: impl Fn() -> bool) -> Result<()> {
        self.wait_ready_for(DEADLINE, ready)
    }

    /// As [`Process::wait_ready`], where there is another deadline.
    pub fn wait_ready_for(&mut self, patience: Duration, ready: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + patience;
        while !ready() {
            if let Some(status) = self.has_ended() {
                bail!("{} ended: {status}\n{}", self.name, self.text());
            }
            if Instant::now() > deadline {
                bail!("{} does not answer\n{}", self.name, self.text());
            }
            thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.has_ended().is_none() {
            self.signal(Signal::CONT);
            self.signal(Signal::INT);
            if self.wait(END).is_none() {
                self.kill();
            }
        }
        if thread::panicking() {
            eprintln!("{}", self.text());
        }
    }
}

/// Between two looks at something that cannot be waited for.
const POLL: Duration = Duration::from_millis(2);

/// Looks again and again until there is something, for at most `patience`.
pub fn poll<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        let found = look();
        if found.is_some() || Instant::now() > deadline {
            return found;
        }
        thread::sleep(POLL);
    }
}

fn keep(stream: impl Read + Send + 'static, log: Journal<String>) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n') {
            let Ok(line) = line else { break };
            log.push(String::from_utf8_lossy(&line).into_owned());
        }
    })
}

/// A TCP port on loopback that is free at this moment.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Starts a server on ports that the kernel gives; another process may take them first.
pub fn on_free_ports<T>(start: impl Fn() -> Result<T>) -> Result<T> {
    let mut last = start();
    for _ in 0..5 {
        if last.is_ok() {
            break;
        }
        last = start();
    }
    last
}

/// The program `name` in PATH or in the folders of servers, which a user's PATH may lack.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/usr/local/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// As [`program`]; the error names the Debian package that holds it.
pub fn program_of(name: &str, package: &str) -> Result<PathBuf> {
    program(name).with_context(|| format!("{name} not found: apt-get install {package}"))
}

/// `path` as text for a configuration file.
pub fn text_of(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
