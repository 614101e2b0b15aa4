// SPDX-License-Identifier: MPL-2.0

//! What a viewer costs the media server: one robot's stream, more and more who look at it by RTSP.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow};
use clap::Args;

use super::common::print_table;
use droidrelay_testkit::usage::{Cpu, Memory};
use droidrelay_testkit::{
    certs::write_private,
    clients::rtsp::Viewer,
    robot::{Robot, Runner},
    servers::relay::{Event, Kind, PATH, Relay},
    testbed::TEST_PICTURE,
};

/// As many bits as the robot's line asks for, whatever the picture.
const ENCODER: &str = "x264enc tune=zerolatency speed-preset=ultrafast bitrate=1500 \
                       key-int-max=30 option-string=nal-hrd=cbr:filler=1";
/// What begins has begun by then.
const SETTLE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Viewers at the same time
    #[arg(long, value_delimiter = ',', default_values_t = [0, 10, 50, 100])]
    viewers: Vec<usize>,
    /// How long each number of them looks
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            viewers: vec![0, 10, 50, 100],
            seconds: 10,
        }
    }
}

pub fn run(options: &Options) -> Result<()> {
    if Kind::MediaMtx.notice_if_absent() {
        return Ok(());
    }
    let relay = Relay::start(Kind::MediaMtx)?;
    let folder = tempfile::tempdir()?;
    let password = write_private(folder.path(), "rtmp.pass", &relay.publisher.password)?;
    let line = format!(
        "{TEST_PICTURE} ! {ENCODER} ! rtmpauthsink location={} user={} password-file={}",
        relay.publish_url(),
        relay.publisher.user,
        password.display()
    );
    let _robot = Robot::start(Runner::GstLaunch, &line)?;
    relay
        .events()
        .wait(0, "the stream", |event| *event == Event::Published)?;
    let mut table = vec![
        [
            "viewers",
            "CPU",
            "CPU per viewer",
            "PSS",
            "Mbit/s per viewer",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let mut alone = None;
    for count in &options.viewers {
        let seen = look(&relay, *count, Duration::from_secs(options.seconds))?;
        let cpu = seen.cpu.as_secs_f64() * 1000.0 / options.seconds as f64;
        let alone = *alone.get_or_insert(cpu);
        let each = |value: f64| match count {
            0 => "-".to_owned(),
            count => format!("{:.2}", value / *count as f64),
        };
        table.push(vec![
            count.to_string(),
            format!("{cpu:.1}"),
            each(cpu - alone),
            format!("{:.1}", seen.memory.pss as f64 / 1024.0),
            each(seen.bytes as f64 * 8.0 / 1e6 / options.seconds as f64),
        ]);
    }
    println!("## MediaMTX: cost per viewer");
    println!();
    println!(
        "One robot publishes by RTMP, viewers read by RTSP over TCP for {} s. CPU time of the server \
         in ms a second; PSS in MiB.",
        options.seconds
    );
    print_table(&table)
}

struct Seen {
    cpu: Duration,
    memory: Memory,
    bytes: u64,
}

fn look(relay: &Relay, count: usize, time: Duration) -> Result<Seen> {
    let ended = AtomicBool::new(false);
    let bytes = AtomicU64::new(0);
    let address = relay.rtsp_address();
    let viewers = (0..count)
        .map(|_| Viewer::open(address, PATH, &relay.viewer, SETTLE * 10))
        .collect::<Result<Vec<_>>>()?;
    thread::scope(|scope| {
        let readers: Vec<_> = viewers
            .into_iter()
            .map(|mut viewer| {
                let (ended, bytes) = (&ended, &bytes);
                scope.spawn(move || -> Result<()> {
                    while !ended.load(Ordering::Relaxed) {
                        bytes.fetch_add(viewer.take_media()? as u64, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        thread::sleep(SETTLE);
        let (before, cpu) = (bytes.load(Ordering::Relaxed), Cpu::of(relay.id())?);
        thread::sleep(time);
        let seen = Seen {
            cpu: Cpu::of(relay.id())?.since(cpu).time,
            memory: Memory::of(relay.id())?,
            bytes: bytes.load(Ordering::Relaxed) - before,
        };
        ended.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().map_err(|_| anyhow!("a viewer panicked"))??;
        }
        Ok(seen)
    })
}
