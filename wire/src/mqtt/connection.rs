// SPDX-License-Identifier: MPL-2.0

//! One connection to the broker: rumqttc's packets, and its account of those under way, on a stream
//! of our own.

use std::{io, time::Duration};

use bytes::BytesMut;
use rumqttc::{
    self as v311,
    v5::{
        self,
        mqttbytes::{Error as Bytes5, v5 as packet},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split},
    select,
    sync::mpsc,
};

use super::{
    fault::Cause,
    protocol::{Client, MAX_PACKET, Opening, Request, Step, Version},
    transport::Stream,
};

/// Unacknowledged publishes; rumqttc reserves memory for this many.
const INFLIGHT: u16 = 20;
/// MQTT 3.1.1 cannot announce it: a larger packet in the broker's queue would end each connection.
const MAX_PACKET_311: usize = 16 * 1024 * 1024;
/// Bytes that wait for a broker which does not read: no more is asked for, and no more is read.
const MAX_UNSENT: usize = 256 * 1024;
/// What is read at once at least.
const READ: usize = 4096;

/// One connection: gone at the first fault.
pub(super) struct Connection {
    talk: Talk,
    requests: mpsc::Receiver<Request>,
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    incoming: BytesMut,
    outgoing: BytesMut,
    /// Something was written since the stream has last been flushed.
    unflushed: bool,
    keep_alive: Duration,
}

/// A version's packets, and what is under way of them.
enum Talk {
    V5 {
        state: Box<v5::MqttState>,
        /// Publishes that the broker takes unacknowledged.
        inflight: u16,
        /// Bytes of the largest packet that it takes.
        max_packet: Option<u32>,
    },
    V311(Box<v311::MqttState>),
}

impl Connection {
    /// Begins a session on `stream` and waits for the broker's answer: what it accepts is the first
    /// step.
    pub async fn greet(
        stream: Box<dyn Stream>,
        opening: &Opening<'_>,
    ) -> Result<(Client, Self), Cause> {
        let (client, requests) = Client::new(opening.version, opening.channel);
        let (reader, writer) = split(stream);
        // By itself rumqttc acknowledges many at once, ahead of the handler.
        let manual_acks = !opening.session_expiry.is_zero();
        let mut connection = Connection {
            talk: match opening.version {
                Version::V5 => Talk::V5 {
                    state: Box::new(v5::MqttState::new(INFLIGHT, manual_acks)),
                    inflight: INFLIGHT,
                    max_packet: None,
                },
                Version::V311 => Talk::V311(Box::new(v311::MqttState::new(INFLIGHT, manual_acks))),
            },
            requests,
            reader,
            writer,
            incoming: BytesMut::new(),
            outgoing: BytesMut::new(),
            unflushed: false,
            keep_alive: Duration::from_secs(opening.keep_alive.as_secs()),
        };
        connection.shake_hands(opening).await?;
        Ok((client, connection))
    }

    async fn shake_hands(&mut self, opening: &Opening<'_>) -> Result<(), Cause> {
        match opening.version {
            Version::V5 => opening
                .connect_v5()
                .write(&mut self.outgoing, None)
                .map_err(v5::StateError::from)?,
            Version::V311 => opening
                .connect_v311()
                .write(&mut self.outgoing, MAX_PACKET_311)
                .map_err(v311::StateError::from)?,
        };
        self.writer.write_all_buf(&mut self.outgoing).await?;
        self.writer.flush().await?;
        while !self
            .talk
            .greeted(&mut self.incoming, &mut self.keep_alive)?
        {
            self.read().await?;
        }
        Ok(())
    }

    /// Dropping this loses nothing.
    async fn read(&mut self) -> Result<(), Cause> {
        self.incoming.reserve(READ);
        match self.reader.read_buf(&mut self.incoming).await? {
            0 => Err(Cause::Closed),
            _ => Ok(()),
        }
    }

    pub fn version(&self) -> Version {
        match self.talk {
            Talk::V5 { .. } => Version::V5,
            Talk::V311(_) => Version::V311,
        }
    }

    /// The keep-alive that holds for this connection, which may be the broker's. Pings are the
    /// caller's.
    pub fn keep_alive(&self) -> Duration {
        self.keep_alive
    }

    /// Sends a ping with the next step.
    pub fn ping(&mut self) -> Result<(), Cause> {
        let ping = match self.version() {
            Version::V5 => Request::V5(v5::Request::PingReq),
            Version::V311 => Request::V311(v311::Request::PingReq(v311::PingReq)),
        };
        self.talk.ask(ping, &mut self.outgoing)
    }

    /// The next step. Dropping this loses nothing.
    pub async fn next(&mut self) -> Result<Step, Cause> {
        loop {
            if let Some(step) = self.talk.step() {
                return Ok(step);
            }
            if self.talk.hear(&mut self.incoming, &mut self.outgoing)? {
                continue;
            }
            let has_room = self.outgoing.len() < MAX_UNSENT;
            let takes_more = has_room && self.talk.takes_more();
            let has_unsent = self.unflushed || !self.outgoing.is_empty();
            self.incoming.reserve(READ);
            // Reading goes on while writing waits: a broker may do the same.
            select! {
                sent = send(&mut self.writer, &mut self.outgoing, &mut self.unflushed),
                    if has_unsent => sent?,
                request = self.requests.recv(), if takes_more => {
                    let request = request.ok_or(Cause::Closed)?;
                    self.talk.ask(request, &mut self.outgoing)?;
                }
                read = self.reader.read_buf(&mut self.incoming), if has_room => {
                    if read? == 0 {
                        return Err(Cause::Closed);
                    }
                }
            }
        }
    }
}

/// Writes, or flushes where all is written. Dropping this loses nothing.
async fn send(
    writer: &mut WriteHalf<Box<dyn Stream>>,
    outgoing: &mut BytesMut,
    unflushed: &mut bool,
) -> io::Result<()> {
    if outgoing.is_empty() {
        writer.flush().await?;
        *unflushed = false;
    } else {
        if writer.write_buf(outgoing).await? == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        *unflushed = true;
    }
    Ok(())
}

impl Talk {
    /// Reads the broker's answer to CONNECT, as soon as it is there.
    fn greeted(
        &mut self,
        incoming: &mut BytesMut,
        keep_alive: &mut Duration,
    ) -> Result<bool, Cause> {
        match self {
            Talk::V5 {
                state,
                inflight,
                max_packet,
            } => {
                let answer = match packet::Packet::read(incoming, Some(MAX_PACKET)) {
                    Err(Bytes5::InsufficientBytes(_)) => return Ok(false),
                    answer => answer.map_err(v5::StateError::from)?,
                };
                let packet::Packet::ConnAck(connack) = &answer else {
                    return Err(v5::StateError::WrongPacket.into());
                };
                if let Some(has) = &connack.properties {
                    *inflight = has.receive_max.unwrap_or(INFLIGHT).min(INFLIGHT);
                    *max_packet = has.max_packet_size;
                    if let Some(seconds) = has.server_keep_alive {
                        *keep_alive = Duration::from_secs(seconds.into());
                    }
                }
                // It refuses what is no success.
                state.handle_incoming_packet(answer)?;
            }
            Talk::V311(state) => {
                let answer = match v311::Packet::read(incoming, MAX_PACKET_311) {
                    Err(v311::Error::InsufficientBytes(_)) => return Ok(false),
                    answer => answer.map_err(v311::StateError::from)?,
                };
                match &answer {
                    v311::Packet::ConnAck(connack)
                        if connack.code == v311::ConnectReturnCode::Success => {}
                    v311::Packet::ConnAck(connack) => return Err(connack.code.into()),
                    _ => return Err(v311::StateError::WrongPacket.into()),
                }
                state.events.push_back(v311::Event::Incoming(answer));
            }
        }
        Ok(true)
    }

    /// What has happened and was not told yet.
    fn step(&mut self) -> Option<Step> {
        match self {
            Talk::V5 { state, .. } => state.events.pop_front().map(Step::of_v5),
            Talk::V311(state) => state.events.pop_front().map(Step::of_v311),
        }
    }

    /// Whether a request can be sent at this moment.
    fn takes_more(&self) -> bool {
        match self {
            Talk::V5 {
                state, inflight, ..
            } => state.inflight() < *inflight && state.collision.is_none(),
            Talk::V311(state) => state.inflight() < INFLIGHT && state.collision.is_none(),
        }
    }

    fn ask(&mut self, request: Request, outgoing: &mut BytesMut) -> Result<(), Cause> {
        match (self, request) {
            (
                Talk::V5 {
                    state, max_packet, ..
                },
                Request::V5(request),
            ) => {
                if let Some(packet) = state.handle_outgoing_packet(request)? {
                    packet
                        .write(outgoing, *max_packet)
                        .map_err(v5::StateError::from)?;
                }
            }
            (Talk::V311(state), Request::V311(request)) => {
                if let Some(packet) = state.handle_outgoing_packet(request)? {
                    packet
                        .write(outgoing, MAX_PACKET_311)
                        .map_err(v311::StateError::from)?;
                }
            }
            // A client speaks its connection's version.
            (Talk::V5 { .. }, Request::V311(_)) | (Talk::V311(_), Request::V5(_)) => {}
        }
        Ok(())
    }

    /// Takes the next packet, if all of it is there, and answers it.
    fn hear(&mut self, incoming: &mut BytesMut, outgoing: &mut BytesMut) -> Result<bool, Cause> {
        match self {
            Talk::V5 {
                state, max_packet, ..
            } => {
                let packet = match packet::Packet::read(incoming, Some(MAX_PACKET)) {
                    Err(Bytes5::InsufficientBytes(_)) => return Ok(false),
                    packet => packet.map_err(v5::StateError::from)?,
                };
                if let Some(answer) = state.handle_incoming_packet(packet)? {
                    answer
                        .write(outgoing, *max_packet)
                        .map_err(v5::StateError::from)?;
                }
            }
            Talk::V311(state) => {
                let packet = match v311::Packet::read(incoming, MAX_PACKET_311) {
                    Err(v311::Error::InsufficientBytes(_)) => return Ok(false),
                    packet => packet.map_err(v311::StateError::from)?,
                };
                if let Some(answer) = state.handle_incoming_packet(packet)? {
                    answer
                        .write(outgoing, MAX_PACKET_311)
                        .map_err(v311::StateError::from)?;
                }
            }
        }
        Ok(true)
    }
}
