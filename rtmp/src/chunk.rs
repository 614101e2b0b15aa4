// SPDX-License-Identifier: MPL-2.0

//! The chunk layer: messages cut into chunks and put together again
//! (RTMP 1.0, sections 5.3 and 5.4).

use std::collections::BTreeMap;

use super::error::Error;

/// Message type ids, sections 5.4, 6.2 and 7.1.
pub mod message_type {
    pub const SET_CHUNK_SIZE: u8 = 1;
    pub const ABORT: u8 = 2;
    pub const ACKNOWLEDGEMENT: u8 = 3;
    pub const USER_CONTROL: u8 = 4;
    pub const WINDOW_ACKNOWLEDGEMENT_SIZE: u8 = 5;
    pub const SET_PEER_BANDWIDTH: u8 = 6;
    pub const AUDIO: u8 = 8;
    pub const VIDEO: u8 = 9;
    pub const COMMAND_AMF3: u8 = 17;
    pub const DATA_AMF0: u8 = 18;
    pub const COMMAND_AMF0: u8 = 20;
}

/// Chunk stream ids. Only the first is given by the specification (section 5.4).
pub mod chunk_stream {
    pub const CONTROL: u8 = 2;
    pub const COMMAND: u8 = 3;
    pub const AUDIO: u8 = 4;
    pub const DATA: u8 = 5;
    pub const VIDEO: u8 = 6;
    pub const COUNT: usize = 7;
}

/// Both sides' chunk size until they say otherwise, section 5.4.1.
const DEFAULT_CHUNK_SIZE: usize = 128;
/// Lengths and plain timestamps are 24 bits wide.
const MAX_24: u32 = 0xff_ffff;
/// Most bytes of unfinished messages that are kept for a peer.
const MAX_PENDING: usize = 1024 * 1024;
/// Most chunk streams that a peer may use.
const MAX_CHUNK_STREAMS: usize = 64;

#[derive(Clone, Copy)]
struct SentHeader {
    timestamp: u32,
    stream_id: u32,
}

/// Cuts messages into chunks.
pub struct ChunkWriter {
    chunk_size: usize,
    sent: [Option<SentHeader>; chunk_stream::COUNT],
}

impl ChunkWriter {
    pub fn new() -> Self {
        ChunkWriter {
            chunk_size: DEFAULT_CHUNK_SIZE,
            sent: [None; chunk_stream::COUNT],
        }
    }

    /// Announces the chunk size and uses it from the next message on.
    pub fn set_chunk_size(&mut self, out: &mut Vec<u8>, size: u32) {
        self.control(out, message_type::SET_CHUNK_SIZE, &size.to_be_bytes());
        self.chunk_size = size as usize;
    }

    /// A protocol control message: chunk stream 2, message stream 0, time ignored.
    pub fn control(&mut self, out: &mut Vec<u8>, type_id: u8, body: &[u8]) {
        self.message(out, chunk_stream::CONTROL, type_id, 0, 0, &[body]);
    }

    /// Appends one message to `out`; its body is the parts in their order.
    ///
    /// A body of 16 MiB or more does not fit RTMP's length field and is left out.
    pub fn message(
        &mut self,
        out: &mut Vec<u8>,
        chunk_stream: u8,
        type_id: u8,
        stream_id: u32,
        timestamp: u32,
        body: &[&[u8]],
    ) {
        let length: usize = body.iter().map(|part| part.len()).sum();
        if length > MAX_24 as usize {
            return;
        }
        out.reserve(length + 16 + length / self.chunk_size * 5);

        // A delta that needs the extended field is sent as a full header: peers disagree on
        // what a continuation chunk repeats then. Backward time can only be absolute.
        let last = &mut self.sent[usize::from(chunk_stream)];
        let delta = last
            .filter(|last| last.stream_id == stream_id)
            .map(|last| timestamp.wrapping_sub(last.timestamp))
            .filter(|delta| *delta < MAX_24);
        *last = Some(SentHeader {
            timestamp,
            stream_id,
        });
        let (format, time) = delta.map_or((0, timestamp), |delta| (0x40, delta));
        let extended = (time >= MAX_24).then(|| time.to_be_bytes());
        out.push(format | chunk_stream);
        out.extend(&time.min(MAX_24).to_be_bytes()[1..]);
        out.extend(&(length as u32).to_be_bytes()[1..]);
        out.push(type_id);
        if delta.is_none() {
            out.extend(stream_id.to_le_bytes());
        }
        out.extend(extended.iter().flatten());

        let mut room = self.chunk_size;
        for part in body {
            let mut part = *part;
            while !part.is_empty() {
                if room == 0 {
                    out.push(0xc0 | chunk_stream);
                    out.extend(extended.iter().flatten());
                    room = self.chunk_size;
                }
                let (head, rest) = part.split_at(part.len().min(room));
                out.extend(head);
                room -= head.len();
                part = rest;
            }
        }
    }
}

/// One message as received.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    pub type_id: u8,
    pub stream_id: u32,
    pub timestamp: u32,
    pub body: Vec<u8>,
}

impl Message {
    /// What a message that is a number says.
    pub fn number(&self) -> Option<u32> {
        Some(u32::from_be_bytes(*self.body.first_chunk()?))
    }
}

/// What a chunk says of its message (section 5.3.1.2), or repeats of the chunk before.
#[derive(Clone, Copy, Default)]
struct Header {
    /// As it came: absolute, or since the message before.
    time: u32,
    length: usize,
    type_id: u8,
    stream_id: u32,
    extended: bool,
}

/// What is remembered of one chunk stream of the peer.
#[derive(Default)]
struct ChunkStream {
    timestamp: u32,
    header: Header,
    /// The message under way; `None` between messages.
    body: Option<Vec<u8>>,
}

/// Puts messages together from bytes that come in any split. Obeys Set Chunk Size and Abort.
pub struct ChunkReader {
    chunk_size: usize,
    buffer: Vec<u8>,
    read: usize,
    streams: BTreeMap<u32, ChunkStream>,
    pending: usize,
}

/// Reads big-endian fields off the front of a chunk; `None` until enough bytes are there.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn number(&mut self, width: usize) -> Option<u32> {
        let bytes = self.take(width)?;
        Some(
            bytes
                .iter()
                .fold(0, |sum, byte| sum << 8 | u32::from(*byte)),
        )
    }

    /// Format and chunk stream id, section 5.3.1.1.
    fn basic_header(&mut self) -> Option<(u8, u32)> {
        let first = self.number(1)?;
        let id = match first & 0x3f {
            0 => 64 + self.number(1)?,
            1 => 64 + u32::from((self.number(2)? as u16).swap_bytes()),
            id => id,
        };
        Some(((first >> 6) as u8, id))
    }

    /// What is not said stays as in the `last` header.
    fn message_header(&mut self, format: u8, last: Header) -> Option<Header> {
        let mut header = last;
        if format <= 2 {
            header.time = self.number(3)?;
            header.extended = header.time == MAX_24;
        }
        if format <= 1 {
            header.length = self.number(3)? as usize;
            header.type_id = self.number(1)? as u8;
        }
        if format == 0 {
            header.stream_id = self.number(4)?.swap_bytes();
        }
        if header.extended {
            let time = self.number(4)?;
            if format <= 2 {
                header.time = time;
            }
        }
        Some(header)
    }
}

impl ChunkReader {
    pub fn new() -> Self {
        ChunkReader {
            chunk_size: DEFAULT_CHUNK_SIZE,
            buffer: Vec::new(),
            read: 0,
            streams: BTreeMap::new(),
            pending: 0,
        }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.read);
        self.read = 0;
        self.buffer.extend(bytes);
    }

    /// Bytes that have been pushed and not been taken.
    #[cfg(feature = "double")]
    pub fn waiting(&self) -> usize {
        self.buffer.len() - self.read
    }

    /// Forgets what waits.
    #[cfg(feature = "double")]
    pub fn discard(&mut self) {
        self.buffer.clear();
        self.read = 0;
    }

    /// The next whole message, `None` until more bytes are pushed.
    pub fn next_message(&mut self) -> Result<Option<Message>, Error> {
        while let Some(finished) = self.next_chunk()? {
            let Some(message) = finished else { continue };
            match message.type_id {
                message_type::SET_CHUNK_SIZE => match message.number() {
                    Some(size @ 1..=0x7fff_ffff) => self.chunk_size = size as usize,
                    size => {
                        return Err(Error::new(format!(
                            "the server set an impossible chunk size ({size:?})"
                        )));
                    }
                },
                message_type::ABORT => {
                    let stream = message.number().and_then(|id| self.streams.get_mut(&id));
                    if let Some(body) = stream.and_then(|stream| stream.body.take()) {
                        self.pending -= body.len();
                    }
                }
                _ => return Ok(Some(message)),
            }
        }
        Ok(None)
    }

    /// Takes one chunk off the buffer: `None` where it is not whole yet, else the message
    /// that it finished, if any.
    fn next_chunk(&mut self) -> Result<Option<Option<Message>>, Error> {
        let mut fields = Fields(&self.buffer[self.read..]);
        let Some((format, id)) = fields.basic_header() else {
            return Ok(None);
        };
        let last = self.streams.get(&id);
        if format >= 2 && last.is_none() {
            return Err(Error::new(format!(
                "the server's chunk stream {id} begins without a full header"
            )));
        }
        let last_header = last.map(|last| last.header).unwrap_or_default();
        let Some(header) = fields.message_header(format, last_header) else {
            return Ok(None);
        };
        let under_way = last.and_then(|last| last.body.as_ref());
        if under_way.is_some() && format != 3 {
            return Err(Error::new(format!(
                "the server began a message on chunk stream {id} inside another one"
            )));
        }
        let missing = header.length - under_way.map_or(0, Vec::len);
        let size = missing.min(self.chunk_size);
        if self.pending + missing > MAX_PENDING {
            return Err(Error::new(format!(
                "the server sends a message of {} bytes: more than {MAX_PENDING} are not taken",
                header.length
            )));
        }
        let Some(data) = fields.take(size) else {
            return Ok(None);
        };
        let left = fields.0.len();

        if last.is_none() && self.streams.len() == MAX_CHUNK_STREAMS {
            return Err(Error::new(format!(
                "the server uses more than {MAX_CHUNK_STREAMS} chunk streams"
            )));
        }
        let stream = self.streams.entry(id).or_default();
        if stream.body.is_none() {
            // A type 3 chunk that begins a message repeats the last delta, which is the
            // timestamp itself behind a type 0 chunk (section 5.3.1.2.4).
            match format {
                0 => stream.timestamp = header.time,
                _ => stream.timestamp = stream.timestamp.wrapping_add(header.time),
            }
            stream.header = header;
        }
        let body = stream.body.get_or_insert_with(Vec::new);
        body.extend(data);
        self.pending += data.len();
        let mut finished = None;
        if body.len() == header.length {
            self.pending -= header.length;
            finished = stream.body.take().map(|body| Message {
                type_id: header.type_id,
                stream_id: header.stream_id,
                timestamp: stream.timestamp,
                body,
            });
        }
        self.read = self.buffer.len() - left;
        Ok(Some(finished))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Noise;
    use super::*;

    fn read_all(reader: &mut ChunkReader, bytes: &[u8]) -> Vec<Message> {
        reader.push(bytes);
        let mut messages = Vec::new();
        while let Some(message) = reader.next_message().unwrap() {
            messages.push(message);
        }
        messages
    }

    #[test]
    fn chunks_are_written_as_in_the_specification() {
        // Section 5.3.2.2: a message of 307 bytes in chunks of 128.
        let mut out = Vec::new();
        let body: Vec<u8> = (0..307).map(|n| n as u8).collect();
        ChunkWriter::new().message(&mut out, 4, 9, 12346, 1000, &[&body[..100], &body[100..]]);
        let mut expected = b"\x04\x00\x03\xe8\x00\x01\x33\x09\x3a\x30\x00\x00".to_vec();
        expected.extend(&body[..128]);
        expected.push(0xc4);
        expected.extend(&body[128..256]);
        expected.push(0xc4);
        expected.extend(&body[256..]);
        assert_eq!(out, expected);
    }

    #[test]
    fn a_later_message_carries_the_time_since_the_last_one() {
        let mut writer = ChunkWriter::new();
        let mut out = Vec::new();
        writer.message(&mut out, 4, 8, 1, 1000, &[b"a"]);
        out.clear();
        writer.message(&mut out, 4, 8, 1, 1020, &[b"b"]);
        assert_eq!(out, b"\x44\0\0\x14\0\0\x01\x08b");
        out.clear();
        // Backwards, and on another message stream: full headers.
        writer.message(&mut out, 4, 8, 1, 1010, &[b"c"]);
        assert_eq!(out[0], 0x04);
        out.clear();
        writer.message(&mut out, 4, 8, 2, 1030, &[b"c"]);
        assert_eq!(out[0], 0x04);
    }

    #[test]
    fn continuation_chunks_repeat_an_extended_timestamp() {
        let mut writer = ChunkWriter::new();
        let mut out = Vec::new();
        writer.message(&mut out, 6, 9, 1, 0x0100_0000, &[&[7; 130]]);
        let mut expected = b"\x06\xff\xff\xff\0\0\x82\x09\x01\0\0\0\x01\0\0\0".to_vec();
        expected.extend([7; 128]);
        expected.extend(b"\xc6\x01\0\0\0\x07\x07");
        assert_eq!(out, expected);
        // The next one is a small delta and needs none.
        out.clear();
        writer.message(&mut out, 6, 9, 1, 0x0100_0021, &[b"x"]);
        assert_eq!(out, b"\x46\0\0\x21\0\0\x01\x09x");
    }

    #[test]
    fn messages_read_back_in_every_split_of_their_bytes() {
        let times = [0, 40, 0xff_fffe, 0xff_ffff, 0x0100_0000, 5, u32::MAX, 3];
        let body: Vec<u8> = (0..300).map(|n| n as u8).collect();
        let mut writer = ChunkWriter::new();
        let mut bytes = Vec::new();
        for (n, time) in times.iter().enumerate() {
            if n == 4 {
                writer.set_chunk_size(&mut bytes, 250);
            }
            writer.message(&mut bytes, 4, 8, 1, *time, &[&body[..n * 40]]);
            writer.message(&mut bytes, 6, 9, 1, *time, &[&body]);
        }
        let whole = read_all(&mut ChunkReader::new(), &bytes);
        assert_eq!(whole.len(), 2 * times.len());
        for (n, time) in times.iter().enumerate() {
            assert_eq!(whole[2 * n].timestamp, *time);
            assert_eq!(whole[2 * n].body, &body[..n * 40]);
            assert_eq!(whole[2 * n + 1].timestamp, *time);
            assert_eq!(whole[2 * n + 1].body, body);
        }
        for step in [1, 2, 3, 7, 129] {
            let mut reader = ChunkReader::new();
            let messages: Vec<Message> = bytes
                .chunks(step)
                .flat_map(|piece| read_all(&mut reader, piece))
                .collect();
            assert_eq!(messages, whole, "pieces of {step} bytes");
        }
    }

    #[test]
    fn all_header_types_and_widths_of_chunk_stream_ids_are_read() {
        let mut reader = ChunkReader::new();
        // Type 0, 1, 2 and 3 on chunk stream 3; the time of each adds up.
        let bytes =
            b"\x03\0\0\x0a\0\0\x01\x08\x01\0\0\0a\x43\0\0\x14\0\0\x02\x09bc\x83\0\0\x1ede\xc3fg";
        let messages = read_all(&mut reader, bytes);
        let times: Vec<u32> = messages.iter().map(|m| m.timestamp).collect();
        assert_eq!(times, [10, 30, 60, 90]);
        assert_eq!(messages[3].body, b"fg");
        assert_eq!(messages[3].type_id, 9);
        // Two and three byte forms: 64 + 6 = 70, 64 + 6 + 256 = 326, both new here.
        let messages = read_all(&mut reader, b"\x00\x06\0\0\0\0\0\x01\x08\x01\0\0\0x");
        assert_eq!(messages.len(), 1);
        let messages = read_all(&mut reader, b"\x01\x06\x01\0\0\0\0\0\x01\x08\x01\0\0\0y");
        assert_eq!(messages.len(), 1);
        let ids: Vec<u32> = reader.streams.keys().copied().collect();
        assert_eq!(ids, [3, 70, 326]);
    }

    #[test]
    fn messages_of_two_chunk_streams_interleave_and_abort_drops_one() {
        let mut reader = ChunkReader::new();
        let mut bytes = b"\x03\0\0\0\0\0\x82\x14\0\0\0\0".to_vec();
        bytes.extend([1; 128]);
        bytes.extend(b"\x04\0\0\0\0\0\x01\x08\x01\0\0\0z");
        let messages = read_all(&mut reader, &bytes);
        assert_eq!(messages.len(), 1);
        assert_eq!(reader.pending, 128);
        read_all(&mut reader, b"\x02\0\0\0\0\0\x04\x02\0\0\0\0\0\0\0\x03");
        assert_eq!(reader.pending, 0);
        let messages = read_all(&mut reader, b"\x03\0\0\0\0\0\x01\x14\0\0\0\0k");
        assert_eq!(messages[0].body, b"k");
    }

    #[test]
    fn a_message_of_more_than_a_mebibyte_is_refused() {
        let mut reader = ChunkReader::new();
        reader.push(b"\x03\0\0\0\xff\xff\xff\x14\0\0\0\0");
        let error = reader.next_message().unwrap_err().to_string();
        assert!(error.contains("16777215"), "{error}");
    }

    #[test]
    fn a_chunk_size_of_zero_is_refused() {
        let mut reader = ChunkReader::new();
        reader.push(b"\x02\0\0\0\0\0\x04\x01\0\0\0\0\0\0\0\0");
        assert!(reader.next_message().is_err());
    }

    #[test]
    fn garbage_never_panics_and_never_piles_up() {
        let mut noise = Noise(2);
        for _ in 0..3000 {
            let mut reader = ChunkReader::new();
            for _ in 0..20 {
                let bytes: Vec<u8> = (0..noise.below(80))
                    .map(|_| match noise.below(3) {
                        0 => noise.next() as u8,
                        _ => [0, 2, 3, 0x43, 0xc3, 1][noise.below(6)],
                    })
                    .collect();
                reader.push(&bytes);
                while let Ok(Some(_)) = reader.next_message() {}
                assert!(reader.pending <= MAX_PENDING && reader.streams.len() <= MAX_CHUNK_STREAMS);
            }
        }
    }
}
