// SPDX-License-Identifier: MPL-2.0

//! A line between a robot and a server, each in a network of its own: its rate, its losses and
//! its delay change while it is used. (The delay is our own doing: not every kernel has netem.)

use std::{
    collections::VecDeque,
    fs::File,
    io::{Read, Write},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags, open},
};

use crate::net::netns::Namespace;

/// The server's address on the line.
pub const SERVER: &str = "10.99.0.2";
const ROBOT: &str = "10.99.0.1";
/// The robot's address after [`ShapedLink::change_address`].
const ROAMING: &str = "10.99.0.3";
/// Name of the device at each end.
const DEVICE: &str = "line";
/// Bytes that wait at the narrow place; what is beyond is lost.
const BUFFER: u32 = 40_000;
/// How often an idle line looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// What a line is like.
#[derive(Debug, Clone, Copy)]
pub struct Quality {
    /// Kilobits per second towards the server.
    pub rate: u32,
    /// Of a hundred packets in each direction.
    pub loss: u32,
    /// Towards the server; back it is 10 ms.
    pub delay: Duration,
    /// Each packet takes so much longer at most, in both directions, and may overtake others.
    pub jitter: Duration,
}

impl Quality {
    /// 10 ms, and no loss.
    pub fn rate(rate: u32) -> Self {
        Quality {
            rate,
            loss: 0,
            delay: BASE,
            jitter: Duration::ZERO,
        }
    }
}

const BASE: Duration = Duration::from_millis(10);

pub struct ShapedLink {
    pub robot: Namespace,
    pub server: Namespace,
    delay: Arc<AtomicU64>,
    jitter: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    directions: Vec<thread::JoinHandle<()>>,
}

impl ShapedLink {
    /// Fails where networks of one's own are not permitted ([`crate::net::netns::is_forbidden`]).
    pub fn new(quality: Quality) -> Result<Self> {
        let robot = Namespace::new("robot")?;
        let server = Namespace::new("server")?;
        let here = end_of(&robot, ROBOT)?;
        let there = end_of(&server, SERVER)?;
        robot.run(|network| {
            network.configure(
                "tc",
                &format!("qdisc add dev {DEVICE} root tbf rate 1gbit burst 5000 limit {BUFFER}"),
            )
        })?;
        let delay = Arc::new(AtomicU64::new(0));
        let back = Arc::new(AtomicU64::new(BASE.as_micros() as u64));
        let jitter = Arc::new(AtomicU64::new(0));
        let ended = Arc::new(AtomicBool::new(false));
        let directions = vec![
            carry(
                [here.try_clone()?, there.try_clone()?],
                [delay.clone(), jitter.clone()],
                &ended,
            )?,
            carry([there, here], [back, jitter.clone()], &ended)?,
        ];
        let line = ShapedLink {
            robot,
            server,
            delay,
            jitter,
            ended,
            directions,
        };
        line.set_quality(quality)?;
        Ok(line)
    }

    /// From now on the line is like this.
    pub fn set_quality(&self, quality: Quality) -> Result<()> {
        let Quality {
            rate,
            loss,
            delay,
            jitter,
        } = quality;
        self.delay
            .store(delay.as_micros() as u64, Ordering::Relaxed);
        self.jitter
            .store(jitter.as_micros() as u64, Ordering::Relaxed);
        self.robot.run(move |network| {
            network.configure(
                "tc",
                &format!(
                    "qdisc change dev {DEVICE} root tbf rate {rate}kbit burst 5000 limit {BUFFER}"
                ),
            )?;
            network.lose_percent(loss)
        })?;
        self.server.run(move |network| network.lose_percent(loss))
    }

    /// The robot's end of the line is up or down from now on, and the robot's machine knows it.
    pub fn set_up(&self, is_up: bool) -> Result<()> {
        let state = if is_up { "up" } else { "down" };
        self.robot
            .run(move |network| network.configure("ip", &format!("link set {DEVICE} {state}")))
    }

    /// The robot has another address from now on, and the one before is nobody's: as when it
    /// goes from one network to another.
    pub fn change_address(&self) -> Result<()> {
        self.robot.run(|network| {
            network.configure("ip", &format!("addr del {ROBOT}/24 dev {DEVICE}"))?;
            network.configure("ip", &format!("addr add {ROAMING}/24 dev {DEVICE}"))
        })
    }
}

impl Drop for ShapedLink {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for direction in self.directions.drain(..) {
            // Without it nothing is carried, which a test has seen before.
            let _ = direction.join();
        }
    }
}

/// The device at one end of the line, and what is sent and received by it as a file.
fn end_of(place: &Namespace, address: &'static str) -> Result<File> {
    place.run(move |network| {
        let device = tun().context("cannot make a TUN device")?;
        network.configure("ip", &format!("addr add {address}/24 dev {DEVICE}"))?;
        network.configure("ip", &format!("link set {DEVICE} up"))?;
        Ok(device)
    })
}

fn tun() -> Result<File> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(open("/dev/net/tun", flags, Mode::empty())?);
    // SAFETY: all zeros are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the file is open, and TUNSETIFF reads and writes one ifreq.
    let failed = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if failed != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(file)
}

/// Carries packets, each `delay` (microseconds) after it came and up to `jitter` later: without
/// jitter in their order.
fn carry(
    [mut from, mut to]: [File; 2],
    [delay, jitter]: [Arc<AtomicU64>; 2],
    ended: &Arc<AtomicBool>,
) -> Result<thread::JoinHandle<()>> {
    let ended = ended.clone();
    Ok(thread::Builder::new().name("line".into()).spawn(move || {
        let mut packet = [0; 2000];
        // By the time at which each is due.
        let mut waiting: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
        let mut random = fastrand::Rng::with_seed(1);
        while !ended.load(Ordering::Relaxed) {
            while let Some((due, bytes)) = waiting.front() {
                if *due > Instant::now() {
                    break;
                }
                // A packet that the device does not take is one that a line loses.
                let _ = to.write(bytes);
                waiting.pop_front();
            }
            let patience = waiting.front().map_or(LOOK, |(due, _)| {
                due.saturating_duration_since(Instant::now())
            });
            let patience = Timespec::try_from(patience).ok();
            let mut device = [PollFd::new(&from, PollFlags::IN)];
            if !poll(&mut device, patience.as_ref()).is_ok_and(|ready| ready > 0) {
                continue;
            }
            let delay = Duration::from_micros(delay.load(Ordering::Relaxed));
            let jitter = jitter.load(Ordering::Relaxed);
            while let Ok(length) = from.read(&mut packet) {
                let due = Instant::now() + delay;
                let (at, due) = if jitter == 0 {
                    let due = waiting.back().map_or(due, |(last, _)| due.max(*last));
                    (waiting.len(), due)
                } else {
                    let due = due + Duration::from_micros(random.u64(..jitter));
                    (waiting.partition_point(|(other, _)| *other <= due), due)
                };
                waiting.insert(at, (due, packet[..length].to_vec()));
            }
        }
    })?)
}
