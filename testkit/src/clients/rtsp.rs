// SPDX-License-Identifier: MPL-2.0

//! A viewer that adds no delay of its own: as much RTSP over TCP as it takes to see when the first
//! whole key frame arrives.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{certs::Login, journal::DEADLINE};

pub struct Viewer {
    stream: BufReader<TcpStream>,
    url: String,
    authorization: String,
    session: String,
    sequence: u32,
    /// When it began to connect.
    pub begun: Instant,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Viewer {
    /// Plays `path`; back when the server has let it in and has a stream, for which it may wait
    /// for `patience`.
    pub fn open(
        address: SocketAddr,
        path: &str,
        login: &Login,
        patience: Duration,
    ) -> Result<Self> {
        let begun = Instant::now();
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        let mut viewer = Viewer {
            stream: BufReader::new(stream),
            url: format!("rtsp://{address}/{path}"),
            authorization: login.basic(),
            session: String::new(),
            sequence: 0,
            begun,
        };
        let url = viewer.url.clone();
        let sdp = viewer.ask("DESCRIBE", &url, "Accept: application/sdp\r\n")?;
        let control = sdp
            .body
            .lines()
            .skip_while(|line| !line.starts_with("m=video"))
            .find_map(|line| line.strip_prefix("a=control:"))
            .context("no video in the description")?;
        let track = match control.contains("://") {
            true => control.to_owned(),
            false => format!("{url}/{control}"),
        };
        let transport = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n";
        let setup = viewer.ask("SETUP", &track, transport)?;
        let session = setup
            .head
            .lines()
            .find_map(|line| line.strip_prefix("Session: "))
            .context("no session")?;
        viewer.session = session.split(';').next().unwrap_or(session).to_owned();
        viewer.ask("PLAY", &url, "")?;
        let stream = viewer.stream.get_ref();
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(viewer)
    }

    fn ask(&mut self, method: &str, url: &str, more: &str) -> Result<Answer> {
        self.sequence += 1;
        let session = match self.session.is_empty() {
            true => String::new(),
            false => format!("Session: {}\r\n", self.session),
        };
        let request = format!(
            "{method} {url} RTSP/1.0\r\nCSeq: {}\r\nAuthorization: {}\r\n{session}{more}\r\n",
            self.sequence, self.authorization
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let answer = self.answer().with_context(|| method.to_owned())?;
        ensure!(answer.status == 200, "{method}: {}", answer.head);
        Ok(answer)
    }

    fn answer(&mut self) -> Result<Answer> {
        let mut head = String::new();
        loop {
            let mut line = String::new();
            ensure!(self.stream.read_line(&mut line)? > 0, "the server hung up");
            if line.trim_end().is_empty() {
                break;
            }
            head += &line.replace('\r', "");
        }
        let status = head.split(' ').nth(1).context("not RTSP")?.parse()?;
        let length = head
            .lines()
            .find_map(|line| {
                line.to_ascii_lowercase()
                    .strip_prefix("content-length: ")?
                    .parse()
                    .ok()
            })
            .unwrap_or(0);
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        let body = String::from_utf8(body)?;
        Ok(Answer { status, head, body })
    }

    /// Waits for a whole key frame; how long after [`Viewer::begun`] it was there.
    pub fn first_picture(&mut self) -> Result<Duration> {
        let mut is_key = false;
        loop {
            let mut frame = [0; 4];
            self.stream.read_exact(&mut frame)?;
            ensure!(frame[0] == b'$', "no RTP where it is expected");
            let mut packet = vec![0; usize::from(u16::from_be_bytes([frame[2], frame[3]]))];
            self.stream.read_exact(&mut packet)?;
            if frame[1] != 0 {
                continue;
            }
            is_key |= holds_key_frame(&packet)?;
            let ends = packet[1] & 0x80 != 0;
            if ends && is_key {
                return Ok(self.begun.elapsed());
            }
        }
    }

    /// Takes what has come, or waits for more; how many bytes it was.
    pub fn take_media(&mut self) -> Result<usize> {
        let mut some = [0; 65536];
        let length = self.stream.read(&mut some)?;
        ensure!(length > 0, "the server hung up");
        Ok(length)
    }

    /// Whether media still comes within `patience`.
    pub fn gets_media(&mut self, patience: Duration) -> Result<bool> {
        self.stream.get_ref().set_read_timeout(Some(patience))?;
        let mut some = [0; 64];
        Ok(matches!(self.stream.read(&mut some), Ok(1..)))
    }
}

/// Whether the RTP packet (RFC 3550) holds some of an IDR picture (RFC 6184).
fn holds_key_frame(packet: &[u8]) -> Result<bool> {
    ensure!(packet.len() > 12, "an RTP packet of {} bytes", packet.len());
    ensure!(
        packet[0] & 0x3f == 0,
        "an RTP header with more than there is here"
    );
    const IDR: u8 = 5;
    let payload = &packet[12..];
    Ok(match payload[0] & 0x1f {
        // STAP-A: units, each with its length ahead.
        24 => {
            let mut rest = &payload[1..];
            let mut found = false;
            while let [high, low, unit @ ..] = rest {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                let Some((unit, next)) = unit.split_at_checked(length) else {
                    bail!("an RTP packet that ends early")
                };
                found |= unit.first().is_some_and(|first| first & 0x1f == IDR);
                rest = next;
            }
            found
        }
        // FU-A: a part of a unit, whose type stands behind.
        28 => payload.get(1).is_some_and(|second| second & 0x1f == IDR),
        unit => unit == IDR,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_frame_is_found_whole_in_parts_and_among_others() {
        let packet = |payload: &[u8]| [&[0x80; 12][..], payload].concat();
        for (payload, is_key) in [
            (&[0x65, 1][..], true),
            (&[0x41, 1], false),
            (&[0x67, 1], false),
            (&[0x7c, 0x85, 1], true),
            (&[0x7c, 0x81, 1], false),
            (&[0x78, 0, 1, 0x67, 0, 1, 0x65], true),
            (&[0x78, 0, 1, 0x67, 0, 1, 0x41], false),
        ] {
            assert_eq!(
                holds_key_frame(&packet(payload)).unwrap(),
                is_key,
                "{payload:?}"
            );
        }
        assert!(holds_key_frame(&packet(&[0x78, 0, 9, 0x67])).is_err());
    }
}
