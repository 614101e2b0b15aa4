// SPDX-License-Identifier: MPL-2.0

//! What both servers are told, and whether they answer.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use crate::{certs::Identity, journal::DEADLINE};

/// What the server says of its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Published,
    PublishRefused,
    Unpublished,
    /// A reader is let in, and waits if there is no stream yet.
    Reader,
    ReaderRefused,
}

#[derive(Clone, Copy)]
pub(super) struct Ports {
    pub rtmp: u16,
    /// MediaMTX: RTSP. nginx: its statistics.
    pub other: u16,
    pub rtmps: u16,
}

#[derive(Clone, Default)]
pub struct Options {
    /// nginx-rtmp alone: let every publisher in at once and hand out frames as they come, also
    /// before the first key frame. (While it asks whether a publisher may, it drops the frames.)
    pub raw: bool,
    /// Listens on all addresses, for a network of a test's own; nginx-rtmp forgets a publisher
    /// that has been silent for five seconds.
    pub far: bool,
    /// Listens with TLS too: what it shows there.
    pub tls: Option<Identity>,
    /// The publisher's, in place of a random one.
    pub password: Option<String>,
    /// MediaMTX alone: a publisher keeps the path until it goes, as with nginx-rtmp.
    pub exclusive: bool,
}

/// An RTMP server answers C0 and C1 with its S0.
pub fn answers_rtmp(port: u16) -> bool {
    let mut hello = [0; 1537];
    hello[0] = 3;
    let mut answer = [0];
    connect(port).is_some_and(|mut stream| {
        stream.write_all(&hello).is_ok() && stream.read_exact(&mut answer).is_ok()
    }) && answer[0] == 3
}

pub(super) fn answers_rtsp(port: u16) -> bool {
    let mut answer = [0; 4];
    connect(port).is_some_and(|mut stream| {
        let request = b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n";
        stream.write_all(request).is_ok() && stream.read_exact(&mut answer).is_ok()
    }) && &answer == b"RTSP"
}

fn connect(port: u16) -> Option<TcpStream> {
    let stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    Some(stream)
}
