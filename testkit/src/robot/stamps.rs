// SPDX-License-Identifier: MPL-2.0

//! A camera whose pictures show the time at which they were taken, and a viewer who reads it:
//! what lies between them is known frame by frame.

use std::{
    fs::OpenOptions,
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

use crate::{
    clients::reader::{self, HEIGHT, WIDTH},
    journal::Journal,
    process::Process,
};

/// Four times what a reader looks at.
const SCALE: usize = 4;
const CAMERA_WIDTH: usize = SCALE * WIDTH;
const CAMERA_HEIGHT: usize = SCALE * HEIGHT;
pub const FRAMES_PER_SECOND: u32 = 25;
/// Side of the square that shows one bit, as a reader sees it.
const BIT: usize = 8;
const BITS_PER_ROW: usize = WIDTH / BIT;
/// Milliseconds, and a check.
const BITS: usize = 32 + 8;
/// Of the picture: more than this is noise, which costs bits.
const NOISE_ROWS: usize = CAMERA_HEIGHT / 2;

/// Plays into a pipe, like a camera: what is not fetched in time is not taken.
pub struct StampedCamera {
    pipe: PathBuf,
    taken: Journal<u32>,
    ended: Arc<AtomicBool>,
    _folder: TempDir,
}

fn check(milliseconds: u32) -> u8 {
    milliseconds
        .to_be_bytes()
        .iter()
        .fold(0x5a, |check, byte| check.rotate_left(3) ^ byte)
}

fn bits(milliseconds: u32) -> u64 {
    u64::from(milliseconds) << 8 | u64::from(check(milliseconds))
}

/// Where bit `n` is, as a reader sees it.
fn corner(n: usize) -> (usize, usize) {
    (n % BITS_PER_ROW * BIT, n / BITS_PER_ROW * BIT)
}

/// The time that a grey frame shows, as a reader has it.
fn read(frame: &[u8]) -> Option<u32> {
    let bits = (0..BITS).fold(0u64, |bits, n| {
        let (x, y) = corner(n);
        // The middle, where scaling has mixed in nothing of the neighbours.
        let rows = frame.chunks(WIDTH).skip(y + 2).take(BIT - 4);
        let sum: usize = rows
            .flat_map(|row| &row[x + 2..x + BIT - 2])
            .map(|&pixel| usize::from(pixel))
            .sum();
        bits << 1 | u64::from(sum > 128 * (BIT - 4) * (BIT - 4))
    });
    let milliseconds = (bits >> 8) as u32;
    (bits as u8 == check(milliseconds)).then_some(milliseconds)
}

/// Paints frames.
struct Painter {
    frame: Vec<u8>,
    noise: Vec<u8>,
    count: usize,
}

impl Painter {
    fn new() -> Self {
        let luma = CAMERA_WIDTH * CAMERA_HEIGHT;
        let mut frame = vec![128; luma * 3 / 2];
        for (n, pixel) in frame[..luma].iter_mut().enumerate() {
            *pixel = (64 + n % CAMERA_WIDTH / 5) as u8;
        }
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let noise = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (96 + (state >> 32) % 64) as u8
        });
        let noise = noise.take(NOISE_ROWS * CAMERA_WIDTH * 2).collect();
        Painter {
            frame,
            noise,
            count: 0,
        }
    }

    fn paint(&mut self, milliseconds: u32) -> &[u8] {
        let bits = bits(milliseconds);
        for n in 0..BITS {
            let (x, y) = corner(n);
            let colour = if bits >> (BITS - 1 - n) & 1 == 1 {
                235
            } else {
                16
            };
            let rows = self.frame.chunks_mut(CAMERA_WIDTH).skip(y * SCALE);
            for row in rows.take(BIT * SCALE) {
                row[x * SCALE..(x + BIT) * SCALE].fill(colour);
            }
        }
        self.count += 1;
        let rows = CAMERA_WIDTH * CAMERA_HEIGHT - NOISE_ROWS * CAMERA_WIDTH;
        let from = self.count * 7919 % (self.noise.len() / 2);
        let noise = &self.noise[from..from + NOISE_ROWS * CAMERA_WIDTH];
        self.frame[rows..rows + noise.len()].copy_from_slice(noise);
        &self.frame
    }
}

impl StampedCamera {
    /// Times are milliseconds since `zero`.
    pub fn start(zero: Instant) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("camera-").tempdir()?;
        let pipe = folder.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        let camera = StampedCamera {
            pipe: pipe.clone(),
            taken: Journal::default(),
            ended: Arc::default(),
            _folder: folder,
        };
        let (taken, ended) = (camera.taken.clone(), camera.ended.clone());
        thread::Builder::new()
            .name("camera".into())
            .spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    // Until somebody opens it, and again when they have gone.
                    play(&pipe, zero, &taken, &ended);
                }
            })?;
        Ok(camera)
    }

    /// The beginning of a line that opens it; `clocksync` makes it live, as a camera is.
    pub fn source(&self) -> String {
        let size = CAMERA_WIDTH * CAMERA_HEIGHT * 3 / 2;
        format!(
            "filesrc location={} blocksize={size} ! rawvideoparse width={CAMERA_WIDTH} height={CAMERA_HEIGHT} format=i420 framerate={FRAMES_PER_SECOND}/1 ! clocksync",
            self.pipe.display()
        )
    }

    /// What was taken: times in milliseconds.
    pub fn taken(&self) -> &Journal<u32> {
        &self.taken
    }
}

impl Drop for StampedCamera {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the player where it waits for somebody.
        let _ = OpenOptions::new().read(true).write(true).open(&self.pipe);
    }
}

fn play(pipe: &Path, zero: Instant, taken: &Journal<u32>, ended: &AtomicBool) {
    let Ok(mut pipe) = OpenOptions::new().write(true).open(pipe) else {
        return;
    };
    let mut painter = Painter::new();
    let frame = Duration::from_secs(1) / FRAMES_PER_SECOND;
    let mut next = Instant::now();
    while !ended.load(Ordering::Relaxed) {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        let now = Instant::now();
        // What would have been taken while the pipe was full is lost.
        next = (next + frame).max(now);
        let milliseconds = now.duration_since(zero).as_millis() as u32;
        if pipe.write_all(painter.paint(milliseconds)).is_err() {
            return;
        }
        taken.push(milliseconds);
    }
}

/// A frame at the viewer.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// When it was taken, and when it was decoded: milliseconds.
    pub taken: u32,
    pub decoded: u32,
}

impl Arrival {
    pub fn latency(&self) -> Duration {
        Duration::from_millis(self.decoded.saturating_sub(self.taken).into())
    }
}

/// Decodes what comes from a stamped camera.
pub struct StampReader {
    process: Process,
    arrivals: Journal<Arrival>,
}

impl StampReader {
    /// Times are milliseconds since `zero`; what comes goes into `arrivals`.
    pub fn start(url: &str, zero: Instant, arrivals: Journal<Arrival>) -> Result<Self> {
        let journal = arrivals.clone();
        let process = reader::decode(url, None, move |frame| {
            // A picture that was damaged on its way shows no time.
            if let Some(taken) = read(frame) {
                let decoded = zero.elapsed().as_millis() as u32;
                journal.push(Arrival { taken, decoded });
            }
        })?;
        Ok(StampReader { process, arrivals })
    }

    pub fn arrivals(&self) -> &Journal<Arrival> {
        &self.arrivals
    }

    pub fn has_ended(&mut self) -> bool {
        self.process.has_ended().is_some()
    }

    pub fn text(&self) -> String {
        self.process.text()
    }
}

impl Drop for StampReader {
    fn drop(&mut self) {
        // ffmpeg that waits for a silent stream does not hear SIGINT.
        self.process.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_shows_its_time_and_a_damaged_one_shows_none() {
        let mut painter = Painter::new();
        for time in [0, 1, 123_456, u32::MAX] {
            let frame = painter.paint(time);
            let mut small: Vec<u8> = frame[..CAMERA_WIDTH * CAMERA_HEIGHT]
                .chunks(CAMERA_WIDTH)
                .step_by(SCALE)
                .flat_map(|row| row.iter().copied().step_by(SCALE))
                .collect();
            assert_eq!(read(&small), Some(time));
            for pixel in &mut small[..WIDTH * BIT] {
                *pixel = 255 - *pixel;
            }
            assert_eq!(read(&small), None);
        }
    }
}
