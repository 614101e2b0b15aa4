// SPDX-License-Identifier: MPL-2.0

//! What a process and its children use, by the kernel's books, and whether one that does the same
//! again and again uses ever more.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{journal::DEADLINE, process::poll};

/// CPU time since the start.
#[derive(Debug, Clone, Copy)]
pub struct Cpu {
    /// User and system time, as the scheduler counts it.
    pub time: Duration,
    /// The same in the clock ticks of /proc/PID/stat.
    pub ticks: u64,
}

impl Cpu {
    /// Of `id`, of its threads that have ended too, and of its children.
    pub fn of(id: u32) -> Result<Self> {
        let mut sum = Cpu {
            time: Duration::ZERO,
            ticks: 0,
        };
        // SAFETY: sysconf reads nothing of ours.
        let tick = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        let tick = Duration::from_secs(1) / u32::try_from(tick)?;
        for id in family(id)? {
            let [user, system, children_user, children_system] = stat(id)?.times;
            let children = children_user + children_system;
            sum.ticks += user + system + children;
            // Those that have ended and been waited for are known in ticks alone.
            sum.time += clock(id)? + tick * u32::try_from(children)?;
        }
        Ok(sum)
    }

    /// What has been used since `earlier`.
    pub fn since(self, earlier: Cpu) -> Cpu {
        Cpu {
            time: self.time.saturating_sub(earlier.time),
            ticks: self.ticks.saturating_sub(earlier.ticks),
        }
    }
}

/// Memory in KiB.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// Pages that others map too count in part.
    pub pss: u64,
    /// The part of `pss` that is in no file: heap, stacks, written data.
    pub anonymous: u64,
    pub rss: u64,
}

impl Memory {
    /// Of `id` and its children, while the fewest others share its pages: these come and go, so
    /// it looks for a second.
    pub fn alone(id: u32) -> Result<Self> {
        let mut most = Memory::of(id)?;
        for _ in 0..10 {
            thread::sleep(Duration::from_millis(100));
            let now = Memory::of(id)?;
            if now.pss > most.pss {
                most = now;
            }
        }
        Ok(most)
    }

    /// Of `id` and its children.
    pub fn of(id: u32) -> Result<Self> {
        let mut sum = Memory::default();
        for id in family(id)? {
            let text = fs::read_to_string(format!("/proc/{id}/smaps_rollup"))?;
            let value = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name));
                let value = line.and_then(|line| line.split_whitespace().next());
                value.and_then(|value| value.parse::<u64>().ok())
            };
            sum.pss += value("Pss:").context("no Pss in smaps_rollup")?;
            sum.anonymous += value("Pss_Anon:").context("no Pss_Anon in smaps_rollup")?;
            sum.rss += value("Rss:").context("no Rss in smaps_rollup")?;
        }
        Ok(sum)
    }
}

/// Threads of `id` at this moment.
pub fn threads(id: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{id}/task"))?.count())
}

/// Open files, sockets and pipes of `id` at this moment.
pub fn descriptors(id: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{id}/fd"))?.count())
}

/// Looks again and again how many threads a process has.
pub struct Peak {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Peak {
    pub fn watch(id: u32) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let end = ended.clone();
        let thread = thread::spawn(move || {
            let mut most = 0;
            while !end.load(Ordering::Relaxed) {
                // No process, no threads; its owner notices.
                most = most.max(threads(id).unwrap_or(0));
                thread::sleep(Duration::from_millis(1));
            }
            most
        });
        Peak { ended, thread }
    }

    /// The most that were seen.
    pub fn end(self) -> usize {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or(0)
    }
}

/// `id` and all that it started and that run.
pub fn family(id: u32) -> Result<Vec<u32>> {
    let mut members = vec![id];
    let processes = fs::read_dir("/proc")?.flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    // Others may end while we look.
    let parents: Vec<(u32, u32)> = processes
        .filter_map(|id| {
            let stat = stat(id).ok()?;
            (!stat.is_zombie).then_some((id, stat.parent))
        })
        .collect();
    let mut next = 0;
    while let Some(&parent) = members.get(next) {
        let children = parents.iter().filter(|(_, of)| *of == parent);
        members.extend(children.map(|(id, _)| *id));
        next += 1;
    }
    Ok(members)
}

/// Children of `id` that have ended and that it has not asked after.
pub fn zombies(id: u32) -> Result<usize> {
    let processes = fs::read_dir("/proc")?.flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let stats = processes.filter_map(|id| stat(id).ok());
    Ok(stats
        .filter(|stat| stat.parent == id && stat.is_zombie)
        .count())
}

struct Stat {
    parent: u32,
    is_zombie: bool,
    /// User and system time in ticks; that of the children that were waited for.
    times: [u64; 4],
}

fn stat(id: u32) -> Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The name, in parentheses, may hold anything. After it come fields 3 and on (proc(5)).
    let (_, rest) = text.rsplit_once(") ").context("no name in stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).context("a short stat");
    let ticks = |number| Ok::<_, anyhow::Error>(field(number)?.parse::<u64>()?);
    Ok(Stat {
        parent: field(4)?.parse()?,
        is_zombie: *field(3)? == "Z",
        times: [ticks(14)?, ticks(15)?, ticks(16)?, ticks(17)?],
    })
}

/// The CPU clock of another process, to the nanosecond.
fn clock(id: u32) -> Result<Duration> {
    let mut clock = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both are given places of ours to write to.
    let done = unsafe {
        libc::clock_getcpuclockid(id.try_into()?, &mut clock) == 0
            && libc::clock_gettime(clock, &mut time) == 0
    };
    ensure!(done, "process {id} has no CPU clock: has it ended?");
    Ok(Duration::new(
        time.tv_sec.try_into()?,
        time.tv_nsec.try_into()?,
    ))
}

/// How long the machine lets a thread wait that could run, so that a test of milliseconds can tell
/// its own subject from a busy machine: between looks.
const NAP: Duration = Duration::from_millis(2);

/// Naps over and over until it is dropped.
pub struct StallMonitor {
    worst: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl StallMonitor {
    pub fn watch() -> Self {
        let (worst, over) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (seen, end) = (worst.clone(), over.clone());
        let thread = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let begin = Instant::now();
                thread::sleep(NAP);
                let late = begin.elapsed().saturating_sub(NAP);
                seen.fetch_max(late.as_nanos() as u64, Ordering::Relaxed);
            }
        });
        StallMonitor {
            worst,
            over,
            thread: Some(thread),
        }
    }

    /// How much too late a nap ended at most.
    pub fn worst(&self) -> Duration {
        Duration::from_nanos(self.worst.load(Ordering::Relaxed))
    }
}

impl Drop for StallMonitor {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

/// What a closed robot uses.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub threads: usize,
    pub descriptors: usize,
    pub memory: Memory,
}

impl Usage {
    pub fn of(id: u32) -> Result<Self> {
        Ok(Usage {
            threads: threads(id)?,
            descriptors: descriptors(id)?,
            memory: Memory::of(id)?,
        })
    }
}

type Column = (&'static str, fn(&Usage) -> u64);

const COLUMNS: [Column; 4] = [
    ("anonymous KiB", |usage| usage.memory.anonymous),
    ("PSS KiB", |usage| usage.memory.pss),
    ("threads", |usage| usage.threads as u64),
    ("descriptors", |usage| usage.descriptors as u64),
];

/// The middle one.
fn median(usages: &[Usage], of: impl Fn(&Usage) -> u64) -> u64 {
    let mut values: Vec<u64> = usages.iter().map(of).collect();
    values.sort_unstable();
    values[values.len() / 2]
}

/// What came of many rounds: three thirds.
pub struct Trend<'a> {
    usages: &'a [Usage],
}

impl<'a> Trend<'a> {
    /// Of three rounds or more.
    pub fn of(usages: &'a [Usage]) -> Result<Self> {
        ensure!(usages.len() >= 3, "{} rounds are too few", usages.len());
        Ok(Trend { usages })
    }

    /// A third of the rounds warms up.
    fn before(&self) -> &[Usage] {
        let third = self.usages.len() / 3;
        &self.usages[third..self.usages.len() - third]
    }

    fn after(&self) -> &[Usage] {
        &self.usages[self.usages.len() - self.usages.len() / 3..]
    }

    /// A line for each thing that is counted.
    pub fn text(&self) -> String {
        let lines = COLUMNS.iter().map(|(name, of)| {
            format!(
                "{} rounds: {name} {} after the first, then {}, {}\n",
                self.usages.len(),
                of(&self.usages[0]),
                median(self.before(), of),
                median(self.after(), of)
            )
        });
        lines.collect()
    }

    /// The last third has used no more than the one in between, but for `slack` KiB of memory,
    /// which come and go; the process `id` has no more threads and descriptors now.
    pub fn is_flat(&self, id: u32, slack: u64) -> Result<()> {
        let before = self.before();
        let most = |of: fn(&Usage) -> usize| before.iter().map(of).max().unwrap_or_default();
        let most_threads = most(|usage| usage.threads);
        let most_descriptors = most(|usage| usage.descriptors);
        // What a round leaves behind is still on its way out when the state says idle.
        poll(DEADLINE, || {
            let now = Usage::of(id).ok()?;
            (now.threads <= most_threads && now.descriptors <= most_descriptors).then_some(())
        })
        .with_context(|| format!("{before:?}, then {:?}", Usage::of(id)))?;
        // PSS depends on who else has mapped the libraries.
        let anonymous = |usage: &Usage| usage.memory.anonymous;
        let (warm, last) = (median(before, anonymous), median(self.after(), anonymous));
        ensure!(last < warm + slack, "from {warm} to {last} KiB");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Process, Signal, poll};
    use rustix::process::{Pid, kill_process};
    use std::process::Command;

    #[test]
    fn a_busy_child_of_a_child_counts() {
        // The shell stays, for it has something to do afterwards.
        let script = "sh -c 'while :; do :; done; :'; :";
        let mut command = Command::new("sh");
        let mut shell = Process::spawn("sh", command.args(["-c", script])).unwrap();
        let id = shell.id();
        let used = || {
            let cpu = Cpu::of(id).unwrap();
            (cpu.time > Duration::from_millis(50) && cpu.ticks > 0).then_some(cpu)
        };
        assert!(poll(DEADLINE, used).is_some());
        let members = family(id).unwrap();
        assert!(members.len() > 1);
        assert!(clock(id).unwrap() < Duration::from_millis(50));
        let memory = Memory::of(id).unwrap();
        assert!(memory.rss >= memory.pss && memory.pss >= memory.anonymous);
        assert!(memory.anonymous > 0);
        for member in members[1..].iter().rev() {
            let member = Pid::from_raw((*member).try_into().unwrap()).unwrap();
            kill_process(member, Signal::KILL).unwrap();
        }
        shell.kill();
    }
}
