use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{ChildStdout, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::Process;

/// A viewer: ffmpeg, set to show each frame as soon as it comes.
pub struct Reader {
    process: Process,
    seen: Arc<Seen>,
    thread: Option<JoinHandle<()>>,
    url: String,
}

#[derive(Default)]
struct Seen {
    frames: Mutex<Frames>,
    changed: Condvar,
}

#[derive(Default)]
struct Frames {
    /// When each one was decoded.
    times: Vec<Instant>,
    header: Vec<u8>,
    newest: Vec<u8>,
    ended: bool,
}

impl Reader {
    /// Connects at once; where the stream is not there yet, the server holds the reader.
    pub fn start(url: &str) -> Self {
        let mut command = Command::new("ffmpeg");
        command.args(["-nostdin", "-v", "warning"]);
        if url.starts_with("rtsp") {
            command.args(["-rtsp_transport", "tcp"]);
        }
        command
            .args(["-fflags", "nobuffer", "-flags", "low_delay"])
            .args(["-probesize", "32", "-analyzeduration", "0", "-threads", "1"])
            .args(["-i", url, "-an", "-fps_mode", "passthrough"])
            .args(["-pix_fmt", "yuv420p", "-flush_packets", "1"])
            .args(["-f", "yuv4mpegpipe", "-"]);
        let (process, stdout) = Process::spawn_piped(command);
        let seen = Arc::<Seen>::default();
        let kept = seen.clone();
        let thread = thread::spawn(move || {
            let _ = read_frames(stdout, &kept);
            kept.frames.lock().unwrap().ended = true;
            kept.changed.notify_all();
        });
        Reader {
            process,
            seen,
            thread: Some(thread),
            url: url.to_owned(),
        }
    }

    /// Frames decoded so far.
    pub fn frames(&self) -> usize {
        self.seen.frames.lock().unwrap().times.len()
    }

    pub fn first_frame(&self) -> Option<Instant> {
        self.seen.frames.lock().unwrap().times.first().copied()
    }

    /// When each frame was decoded.
    pub fn frame_times(&self) -> Vec<Instant> {
        self.seen.frames.lock().unwrap().times.clone()
    }

    /// Waits for `count` decoded frames; when the first one came.
    pub fn wait_frames(&self, count: usize, deadline: Duration) -> Instant {
        let end = Instant::now() + deadline;
        let mut frames = self.seen.frames.lock().unwrap();
        while frames.times.len() < count.max(1) {
            let left = end.checked_duration_since(Instant::now());
            if left.is_none() || frames.ended {
                let (got, ended) = (frames.times.len(), frames.ended);
                drop(frames);
                let how = if ended { "the reader has ended" } else { "" };
                panic!(
                    "{got} frames of {count} within {deadline:?} {how}: {}",
                    self.errors()
                );
            }
            frames = self
                .seen
                .changed
                .wait_timeout(frames, left.unwrap_or_default())
                .unwrap()
                .0;
        }
        frames.times[0]
    }

    /// The server has closed the stream, or ffmpeg gave up.
    pub fn has_ended(&self) -> bool {
        self.seen.frames.lock().unwrap().ended
    }

    /// What ffmpeg complained of, without the URL's credentials.
    pub fn errors(&self) -> String {
        self.process.stderr().replace(&self.url, "the stream")
    }

    /// Saves the newest frame as PNG.
    pub fn picture(&self, path: &Path) -> Result<(), String> {
        let one_frame = {
            let frames = self.seen.frames.lock().unwrap();
            if frames.newest.is_empty() {
                return Err("no frame was decoded".into());
            }
            [&frames.header[..], b"FRAME\n", &frames.newest[..]].concat()
        };
        let mut child = Command::new("ffmpeg")
            .args(["-v", "error", "-y", "-f", "yuv4mpegpipe", "-i", "-"])
            .args(["-frames:v", "1", "-f", "image2", "-c:v", "png"])
            .arg(path)
            .stdin(Stdio::piped())
            .spawn()
            .map_err(|err| format!("ffmpeg: {err}"))?;
        let mut stdin = child.stdin.take().expect("a pipe");
        let written = std::io::Write::write_all(&mut stdin, &one_frame);
        drop(stdin);
        let status = child.wait().map_err(|err| err.to_string())?;
        if written.is_err() || !status.success() {
            return Err(format!("cannot save {}", path.display()));
        }
        Ok(())
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Leaves as a player does; gone on return.
    pub fn stop(self) {
        self.process.signal(Signal::INT);
        self.process.wait(crate::DEADLINE);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.process.kill();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// yuv4mpeg: one line with the size, then for each frame a line and the planes.
fn read_frames(stdout: ChildStdout, seen: &Seen) -> Option<()> {
    let mut stdout = BufReader::with_capacity(1 << 16, stdout);
    let mut header = Vec::new();
    stdout.read_until(b'\n', &mut header).ok()?;
    let text = String::from_utf8_lossy(&header);
    let number = |letter: char| -> Option<usize> {
        let mut words = text.split_whitespace().skip(1);
        words
            .find_map(|word| word.strip_prefix(letter))?
            .parse()
            .ok()
    };
    let (width, height) = (number('W')?, number('H')?);
    let size = width * height + 2 * width.div_ceil(2) * height.div_ceil(2);
    seen.frames.lock().unwrap().header = header;
    let mut frame = vec![0; size];
    loop {
        let mut line = Vec::new();
        stdout.read_until(b'\n', &mut line).ok()?;
        stdout.read_exact(&mut frame).ok()?;
        let mut frames = seen.frames.lock().unwrap();
        frames.times.push(Instant::now());
        frames.newest.clear();
        frames.newest.extend_from_slice(&frame);
        drop(frames);
        seen.changed.notify_all();
    }
}
