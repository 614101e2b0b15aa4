// SPDX-License-Identifier: MPL-2.0

//! A network of a test's own, in which packets can be lost without a word: a thread in a
//! network namespace with a loopback device of its own.

use std::{
    any::Any,
    fs,
    io::{self, Write},
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use rustix::{
    io::Errno,
    mount::{MountPropagationFlags, mount_bind, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};
use tempfile::TempDir;

use crate::{journal::Journal, process::program_of};

/// The address whose packets [`Network`] can lose; all others are always well.
pub const FAR: &str = "127.0.0.2";
/// Where [`NameServer`] listens; nothing else knows of it.
const NAME_SERVER: &str = "127.0.0.53";
const CHAIN: &str = "inet faults input";

/// Which packets to and from [`FAR`] are lost, on their way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// All of them: a black hole.
    All,
    /// Those that begin a connection.
    Syn,
    /// Nine of ten.
    Most,
}

/// The namespace that the current thread is in. Processes and threads that are started from
/// here on are in it too.
pub struct Network(());

/// Runs `test` in a thread that has a network, and mounts, of its own. Where that is not
/// permitted the test does not run, and says so on the terminal.
pub fn isolated(test: impl FnOnce(&Network) + Send + 'static) {
    let name = thread::current().name().unwrap_or("test").to_owned();
    let test_name = name.clone();
    let run = move || match enter() {
        Ok(network) => test(&network),
        Err(err) if is_forbidden(&err) => tell_skipped(&test_name),
        Err(err) => panic!("{err:#}"),
    };
    let ended = thread::Builder::new()
        .name(name)
        .spawn(run)
        .expect("a thread for the test")
        .join();
    if let Err(panic) = ended {
        resume_unwind(panic);
    }
}

/// Whether a network of one's own is not permitted here.
pub fn is_forbidden(err: &anyhow::Error) -> bool {
    err.downcast_ref() == Some(&Errno::PERM)
}

/// Says on the terminal that a test has not run.
pub fn tell_skipped(test: &str) {
    // Not by eprintln, which is kept from the terminal where a test succeeds.
    let _ = writeln!(
        io::stderr(),
        "SKIPPED {test}: no network of its own: run it as root"
    );
}

type Job = Box<dyn FnOnce(&Network) + Send>;

/// A network that lasts, beside others: a thread in it that does what it is told. Processes and
/// threads that are started there are in it too, and end with it.
pub struct Namespace {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Namespace {
    pub fn new(name: &str) -> Result<Self> {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (entered, result) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let network = match enter() {
                    Ok(network) => network,
                    Err(err) => {
                        // The maker waits for it.
                        let _ = entered.send(Err(err));
                        return;
                    }
                };
                let _ = entered.send(Ok(()));
                for job in todo {
                    job(&network);
                }
            })?;
        result.recv().context("the thread has ended")??;
        Ok(Namespace {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    /// Does `job` there, and gives what it gives.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce(&Network) -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel::<Result<T, Box<dyn Any + Send>>>();
        let job = Box::new(move |network: &Network| {
            let outcome = catch_unwind(AssertUnwindSafe(|| job(network)));
            // The one who asked waits for it.
            let _ = done.send(outcome);
        });
        self.jobs
            .as_ref()
            .and_then(|jobs| jobs.send(job).ok())
            .and_then(|()| result.recv().ok())
            .expect("the place's thread lives as long as the place")
            .unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic in it has been passed on already.
            let _ = thread.join();
        }
    }
}

fn enter() -> Result<Network> {
    // SAFETY: no file descriptor table is unshared, and this thread is new: nothing in it relies
    // on the namespaces or the working directory that it had.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .context("cannot make the mounts private")?;
    run("ip", "iproute2", &["link", "set", "lo", "up"])?;
    let network = Network(());
    network.nft("add table inet faults")?;
    network.nft(&format!(
        "add chain {CHAIN} {{ type filter hook input priority 0; }}"
    ))?;
    Ok(network)
}

impl Network {
    /// From now on these packets are lost, without any answer.
    pub fn lose(&self, loss: Loss) -> Result<()> {
        let packets = match loss {
            Loss::All => "",
            Loss::Syn => "tcp flags & (syn|ack) == syn",
            Loss::Most => "numgen random mod 100 < 90",
        };
        self.nft(&format!("add rule {CHAIN} ip daddr {FAR} {packets} drop"))?;
        self.nft(&format!("add rule {CHAIN} ip saddr {FAR} {packets} drop"))
    }

    /// Gives the network `name`, with `far6` ahead of [`FAR`]: so are names answered where a
    /// server has both kinds of address. What is returned holds the names.
    pub fn name_both(&self, name: &str, far6: Ipv6Addr) -> Result<TempDir> {
        self.configure("ip", &format!("address add {far6}/128 dev lo nodad"))?;
        let folder = tempfile::Builder::new().prefix("names-").tempdir()?;
        let hosts = folder.path().join("hosts");
        fs::write(
            &hosts,
            format!("127.0.0.1 localhost\n{far6} {name}\n{FAR} {name}\n"),
        )?;
        self.show(&hosts, "/etc/hosts")?;
        Ok(folder)
    }

    /// From now on all packets to `address` are lost, without any answer.
    pub fn lose_to(&self, address: Ipv6Addr) -> Result<()> {
        self.nft(&format!("add rule {CHAIN} ip6 daddr {address} drop"))
    }

    /// From now on the packets of all connections that there are to `port` at [`FAR`] are lost,
    /// as when a router in between forgets them; new connections are well.
    pub fn forget_connections(&self, port: u16) -> Result<()> {
        let table = fs::read_to_string("/proc/thread-self/net/tcp")?;
        let far: Ipv4Addr = FAR.parse()?;
        let far = u32::from_ne_bytes(far.octets());
        let remote = format!("{far:08X}:{port:04X}");
        // "N: LOCAL:PORT REMOTE:PORT STATE ..." (proc(5)), in hexadecimal digits.
        let locals = table.lines().filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (local, to) = (words.next()?, words.next()?);
            let (_, local) = local.split_once(':')?;
            (to == remote).then(|| u16::from_str_radix(local, 16).ok())?
        });
        let locals: Vec<u16> = locals.collect();
        ensure!(!locals.is_empty(), "no connection to port {port}");
        for local in locals {
            for end in ["sport", "dport"] {
                self.nft(&format!("add rule {CHAIN} tcp {end} {local} drop"))?;
            }
        }
        Ok(())
    }

    /// No packet is lost any more.
    pub fn heal(&self) -> Result<()> {
        self.nft(&format!("flush chain {CHAIN}"))
    }

    /// As [`Network::heal`], at this time.
    pub fn heal_at(&self, time: Instant) -> Result<()> {
        thread::sleep(time.saturating_duration_since(Instant::now()));
        self.heal()
    }

    /// Shows `file` in the place of `path` to this thread and its children.
    pub fn show(&self, file: &Path, path: &str) -> Result<()> {
        mount_bind(file, path).with_context(|| format!("cannot mount a file on {path}"))
    }

    /// Loses so many of a hundred packets that come, at random, in place of all other losses.
    pub fn lose_percent(&self, percent: u32) -> Result<()> {
        self.heal()?;
        let which = match percent {
            0 => return Ok(()),
            100.. => String::new(),
            percent => format!("numgen random mod 100 < {percent}"),
        };
        self.nft(&format!("add rule {CHAIN} iif != lo {which} drop"))
    }

    /// Does what a command of iproute2 does (`ip`, `tc`).
    pub fn configure(&self, program: &str, arguments: &str) -> Result<()> {
        let words: Vec<_> = arguments.split_whitespace().collect();
        run(program, "iproute2", &words)
    }

    fn nft(&self, command: &str) -> Result<()> {
        let words: Vec<_> = command.split_whitespace().collect();
        run("nft", "nftables", &words)
    }
}

fn run(program: &str, package: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program_of(program, package)?)
        .args(arguments)
        .output()?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The only name server of a [`Network`]: silent at first, later it says [`FAR`] for every name.
pub struct NameServer {
    answers: Arc<AtomicBool>,
    queries: Journal<()>,
    /// What is mounted.
    _folder: TempDir,
}

impl NameServer {
    pub fn start(network: &Network) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("names-").tempdir()?;
        let conf = folder.path().join("resolv.conf");
        fs::write(&conf, format!("nameserver {NAME_SERVER}\n"))?;
        network.show(&conf, "/etc/resolv.conf")?;
        let socket = UdpSocket::bind((NAME_SERVER, 53))?;
        let answers = Arc::new(AtomicBool::new(false));
        let queries = Journal::default();
        let (shared, log) = (answers.clone(), queries.clone());
        // Ends with the process: its socket is in nobody's way.
        thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut query) {
                log.push(());
                if shared.load(Ordering::SeqCst) {
                    let answer = answer(&query[..length]).unwrap_or_default();
                    // Who does not listen any more asks again.
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Ok(NameServer {
            answers,
            queries,
            _folder: folder,
        })
    }

    /// One entry for each question that came.
    pub fn queries(&self) -> &Journal<()> {
        &self.queries
    }

    /// From now on every question is answered.
    pub fn answer(&self) {
        self.answers.store(true, Ordering::SeqCst);
    }
}

/// The answer to a query with one question (RFC 1035, section 4): [`FAR`] where IPv4 addresses
/// are asked for, else that there is no such record.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    const A: &[u8] = &[0, 1, 0, 1];
    let name = query.get(HEADER..)?.iter().position(|byte| *byte == 0)?;
    let end = HEADER + name + 1 + A.len();
    let question = query.get(HEADER..end)?;
    let found = question.ends_with(A);
    let mut answer = query[..2].to_vec();
    // A response, recursion available; one question and the answers.
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(found), 0, 0, 0, 0]);
    answer.extend(question);
    if found {
        // The name at offset 12, type A, class IN, 0 s to live, 4 bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        let address: Ipv4Addr = FAR.parse().ok()?;
        answer.extend(address.octets());
    }
    Some(answer)
}
