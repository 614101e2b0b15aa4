// SPDX-License-Identifier: MPL-2.0

//! A viewer: ffmpeg, which decodes what it is given, frame by frame.

use std::{
    io::Read,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    journal::{DEADLINE, Journal},
    process::{Process, program_of},
};

/// What is counted is small and grey.
pub(crate) const WIDTH: usize = 160;
pub(crate) const HEIGHT: usize = 90;

pub struct Reader {
    process: Process,
    /// Average brightness of each decoded frame.
    frames: Journal<u8>,
}

impl Reader {
    /// Begins to read `url`, which may hold credentials. `picture`: the 30th frame is written
    /// there as PNG.
    pub fn start(url: &str, picture: Option<&Path>) -> Result<Self> {
        let frames = Journal::default();
        let journal: Journal<u8> = frames.clone();
        let process = decode(url, picture, move |frame| {
            let sum: usize = frame.iter().map(|&pixel| usize::from(pixel)).sum();
            journal.push((sum / frame.len()) as u8);
        })?;
        Ok(Reader { process, frames })
    }

    pub fn frames(&self) -> &Journal<u8> {
        &self.frames
    }

    /// Waits until `count` frames are decoded; gives the time of the last of them.
    pub fn wait_frames(&self, count: usize) -> Result<Instant> {
        let mark = count.saturating_sub(1);
        let what = format!("{count} decoded frames (of {})", self.frames.mark());
        let found = self.frames.wait(mark, &what, |_| true);
        Ok(found.with_context(|| self.process.text())?.0)
    }

    /// What ffmpeg complained of in the stream. That two frames have the same millisecond, which
    /// it holds against its own output, is no fault.
    pub fn complaints(&self) -> Vec<String> {
        let mut lines = self.process.log().all();
        lines.retain(|line| !line.contains("non monotonically increasing dts to muxer"));
        lines
    }

    pub fn has_ended(&mut self) -> bool {
        self.process.has_ended().is_some()
    }

    /// Waits until ffmpeg has ended by itself.
    pub fn wait_end(&mut self, patience: Duration) -> bool {
        self.process.wait(patience).is_some()
    }

    pub fn text(&self) -> String {
        self.process.text()
    }
}

/// Decodes `url` frame by frame, small and grey, and shows each frame to `look` in a thread of
/// its own.
pub(crate) fn decode(
    url: &str,
    picture: Option<&Path>,
    mut look: impl FnMut(&[u8]) + Send + 'static,
) -> Result<Process> {
    let mut command = Command::new(program_of("ffmpeg", "ffmpeg")?);
    command.args("-v repeat+error -nostdin -flags low_delay -threads 1".split(' '));
    command.args("-probesize 32 -analyzeduration 0".split(' '));
    if url.starts_with("rtsp") {
        command.args(["-rtsp_transport", "tcp"]);
    }
    command.args(["-i", url, "-map", "0:v", "-fps_mode", "passthrough"]);
    command.args(["-vf", &format!("scale={WIDTH}:{HEIGHT}")]);
    command
        .args("-pix_fmt gray -enc_time_base 1:1000 -flush_packets 1 -f rawvideo pipe:1".split(' '));
    if let Some(picture) = picture {
        command.args(["-map", "0:v", "-vf", r"select=gte(n\,30)"]);
        command
            .args("-threads 1 -frames:v 1 -update 1 -y".split(' '))
            .arg(picture);
    }
    let (process, mut output) = Process::spawn_with_output("reader", &mut command)?;
    thread::spawn(move || {
        let mut frame = vec![0; WIDTH * HEIGHT];
        while output.read_exact(&mut frame).is_ok() {
            look(&frame);
        }
    });
    Ok(process)
}

/// The flags (ffprobe's, `K` for a key frame) of the first video packet that comes to somebody
/// who reads `url` before `start` is called.
pub fn first_packet(url: &str, start: impl FnOnce()) -> Result<String> {
    let mut command = Command::new(program_of("ffprobe", "ffmpeg")?);
    command.args("-v error -probesize 32 -analyzeduration 0".split(' '));
    command.args("-select_streams v -show_entries packet=flags -of csv=p=0".split(' '));
    command.args(["-read_intervals", "%+#1", url]);
    let mut process = Process::spawn("ffprobe", &mut command)?;
    start();
    let (_, line) = process.log().wait(0, "the first packet", |_| true)?;
    process.kill();
    Ok(line)
}

/// Kind (`video` or `audio`) and time in seconds of what comes in the next `seconds` of `url`.
pub fn packets(url: &str, seconds: u32) -> Result<Vec<(String, f64)>> {
    let mut command = Command::new(program_of("ffprobe", "ffmpeg")?);
    command.args("-v error -show_entries packet=codec_type,pts_time -of csv=p=0".split(' '));
    if url.starts_with("rtsp") {
        command.args(["-rtsp_transport", "tcp"]);
    }
    command.args(["-read_intervals", &format!("%+{seconds}"), url]);
    let mut process = Process::spawn("ffprobe", &mut command)?;
    process.wait(DEADLINE);
    let packets = process.log().all().into_iter().filter_map(|line| {
        let (kind, time) = line.split_once(',')?;
        Some((kind.to_owned(), time.trim_end_matches(',').parse().ok()?))
    });
    Ok(packets.collect())
}

impl Drop for Reader {
    fn drop(&mut self) {
        // ffmpeg that waits for a silent stream does not hear SIGINT.
        self.process.kill();
    }
}
