// SPDX-License-Identifier: MPL-2.0

//! The client's side of one publishing session (RTMP 1.0, sections 5.2 and 7.2).

use std::{collections::VecDeque, fmt};

use droidrelay_wire::{Secret, net::url::percent_decode};

use super::amf0::{self, Value};
use super::auth::Demand;
use super::chunk::{ChunkReader, ChunkWriter, Message, chunk_stream, message_type};
use super::error::Error;
use super::flv::Metadata;

/// The only RTMP version there is, section 5.2.2.
const VERSION: u8 = 3;
/// Length of C1, C2, S1, S2, section 5.2.3.
const HANDSHAKE_SIZE: usize = 1536;
const S0_S1: usize = 1 + HANDSHAKE_SIZE;
const S0_S1_S2: usize = S0_S1 + HANDSHAKE_SIZE;
/// Our chunks: most frames go in one, and audio never waits long behind one.
const CHUNK_SIZE: u32 = 65_536;
/// How many bytes the server may take before it acknowledges them. Small, so that
/// [`Publisher::acknowledged_bytes`] follows what the uplink carries.
const WINDOW: u32 = 65_536;
/// The id that every server gives to the first stream of a connection.
const FIRST_STREAM: u32 = 1;
/// Most bytes of answers that wait for a server that asks and does not read.
const MAX_ANSWERS: usize = 64 * 1024;
/// Longest text taken over from a server, in characters.
const MAX_TEXT: usize = 500;
/// The code that stands beside the URL of another server.
const REDIRECTED: f64 = 302.0;

/// Transaction ids of our commands.
mod transaction {
    pub const CONNECT: u32 = 1;
    pub const RELEASE_STREAM: u32 = 2;
    pub const FC_PUBLISH: u32 = 3;
    pub const CREATE_STREAM: u32 = 4;
    pub const PUBLISH: u32 = 5;
    pub const FC_UNPUBLISH: u32 = 6;
    pub const DELETE_STREAM: u32 = 7;
}

/// User control events, section 7.1.7.
mod user_control {
    pub const PING_REQUEST: u16 = 6;
    pub const PING_RESPONSE: u16 = 7;
}

/// Where to publish and how.
#[derive(Clone, Debug)]
pub struct Params {
    /// With its query, which may hold credentials.
    pub app: Secret,
    /// `rtmp://host[:port]/app`, with that query too.
    pub tc_url: Secret,
    /// Stream name as sent, with its query and so with the credentials.
    pub stream: Secret,
    /// Is added to the application's query, for servers that want a login there.
    pub login: Option<Secret>,
    /// Send every command behind the handshake without waiting for answers. `false` is
    /// the textbook order: each step waits for the answer to the one before.
    pub pipelined: bool,
    /// Tell the server that the video is HEVC (`fourCcList` of Enhanced RTMP).
    pub hevc: bool,
    /// Leave a moment between C2 and `connect`: the caller calls [`Publisher::connect`], for
    /// servers that lose what they read together with C2.
    pub pauses: bool,
}

/// The step whose answer is awaited, in their order. It moves with the server's answers
/// only: a connection that closes at `Publish` was closed while the server decided about
/// the publisher, most often about its credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    Handshake,
    Connect,
    CreateStream,
    Publish,
    Published,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The server does not accept these credentials, or none at all.
    Credentials,
    /// The server does not accept the connection to the application: its name may be wrong, or
    /// the credentials.
    Application,
    /// Somebody publishes there already.
    PathTaken,
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The server takes the stream.
    Published,
    /// The server refuses the stream, or ends it. Its texts are freed of every credential.
    Refused {
        code: String,
        description: String,
        kind: RefusalKind,
    },
    /// The server wants a login at connect: connect again with it.
    LoginDemanded(Demand),
    /// Another server is to be connected to, at this URL of an application.
    Redirected(String),
    /// The server's first stream has not the id 1 that pipelining counts on: connect again
    /// step by step.
    StreamIdMismatch,
}

/// One publishing session, from C0 to `deleteStream`.
///
/// Give every byte that the socket reads to [`input`](Self::input), write what
/// [`output`](Self::output) holds after each call, take the events. After
/// [`Event::Refused`], [`Event::LoginDemanded`], [`Event::Redirected`],
/// [`Event::StreamIdMismatch`] or an [`Error`] the session is over: close the socket.
pub struct Publisher {
    params: Params,
    progress: Progress,
    handshake: Vec<u8>,
    reader: ChunkReader,
    writer: ChunkWriter,
    stream_id: u32,
    connect_sent: bool,
    /// `publish` is in the output, media may follow it.
    publish_sent: bool,
    /// Nothing more is sent or expected.
    over: bool,
    failed: Option<Error>,
    events: VecDeque<Event>,
    output: Vec<u8>,
    written: usize,
    /// Bytes of control messages since the output was last empty.
    answers: usize,
    received_bytes: u64,
    /// Received bytes at our last Acknowledgement, and how often one is due.
    acknowledged_to_peer: u64,
    window_of_peer: Option<u32>,
    acknowledged: Option<u64>,
    server_version: Option<String>,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("params", &self.params)
            .field("progress", &self.progress)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

impl Publisher {
    /// Begins a session; [`output`](Self::output) then holds C0 and C1. `random` fills C1
    /// (1528 bytes; fewer are repeated).
    pub fn new(params: Params, random: &[u8]) -> Self {
        let mut output = vec![VERSION];
        output.extend([0; 8]);
        let filler = random.iter().copied().cycle().chain(std::iter::repeat(0));
        output.extend(filler.take(HANDSHAKE_SIZE - 8));
        Publisher {
            params,
            progress: Progress::Handshake,
            handshake: Vec::new(),
            reader: ChunkReader::new(),
            writer: ChunkWriter::new(),
            stream_id: FIRST_STREAM,
            connect_sent: false,
            publish_sent: false,
            over: false,
            failed: None,
            events: VecDeque::new(),
            output,
            written: 0,
            answers: 0,
            received_bytes: 0,
            acknowledged_to_peer: 0,
            window_of_peer: None,
            acknowledged: None,
            server_version: None,
        }
    }

    /// Takes bytes from the server, in any split. An error ends the session.
    pub fn input(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.received_bytes += bytes.len() as u64;
        let taken = self.take(bytes);
        if let Err(error) = &taken {
            self.over = true;
            self.failed = Some(error.clone());
        }
        taken
    }

    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What is to be written to the socket next.
    pub fn output(&self) -> &[u8] {
        &self.output[self.written..]
    }

    /// Marks the first `count` bytes of [`output`](Self::output) as written.
    pub fn consume(&mut self, count: usize) {
        let count = count.min(self.output.len() - self.written);
        self.written += count;
        // Moving the rest only where it is the smaller part keeps the cost linear.
        if self.written * 2 >= self.output.len() {
            self.output.drain(..self.written);
            self.written = 0;
        }
        if self.output.is_empty() {
            self.answers = 0;
        }
    }

    /// May media be given now? Pipelined as soon as the handshake is done, else once the
    /// server has said `NetStream.Publish.Start`.
    pub fn ready_for_media(&self) -> bool {
        let answered = self.params.pipelined || self.is_published();
        self.publish_sent && answered && !self.over
    }

    pub fn is_published(&self) -> bool {
        self.progress == Progress::Published && !self.over
    }

    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// The server has been asked for something: `connect` is in the output, or was.
    pub fn has_asked(&self) -> bool {
        self.connect_sent
    }

    /// The handshake is done, and [`connect`](Self::connect) is due a moment after C2 was written.
    pub fn awaits_connect(&self) -> bool {
        self.params.pauses && !self.connect_sent && !self.over && self.progress == Progress::Connect
    }

    /// Sends `connect` where that is [due](Self::awaits_connect).
    pub fn connect(&mut self) {
        if self.awaits_connect() {
            self.send_connect();
        }
    }

    /// What the server calls itself (`fmsVer`), once it has said so.
    pub fn server_version(&self) -> Option<&str> {
        self.server_version.as_deref()
    }

    /// How many of our bytes the server says it has, `None` before it said so.
    pub fn acknowledged_bytes(&self) -> Option<u64> {
        self.acknowledged
    }

    /// Sends `onMetaData`. Like all media calls: nothing happens unless
    /// [`ready_for_media`](Self::ready_for_media).
    pub fn metadata(&mut self, metadata: &Metadata) {
        self.raw_data(0, &metadata.body());
    }

    /// Sends the body of an FLV script tag; `onMetaData` gets the `@setDataFrame` in front
    /// that makes servers keep it.
    pub fn raw_data(&mut self, timestamp_ms: u32, body: &[u8]) {
        let mut prefix = Vec::new();
        if body.get(3..13) == Some(b"onMetaData") {
            amf0::encode_string(&mut prefix, "@setDataFrame");
        }
        self.media(
            chunk_stream::DATA,
            message_type::DATA_AMF0,
            timestamp_ms,
            &[&prefix, body],
        );
    }

    /// Sends one video body, given as parts that follow each other.
    pub fn video(&mut self, timestamp_ms: u32, body: &[&[u8]]) {
        self.media(chunk_stream::VIDEO, message_type::VIDEO, timestamp_ms, body);
    }

    /// Sends one audio body, given as parts that follow each other.
    pub fn audio(&mut self, timestamp_ms: u32, body: &[&[u8]]) {
        self.media(chunk_stream::AUDIO, message_type::AUDIO, timestamp_ms, body);
    }

    /// Ends the session: the output then ends with `FCUnpublish` and `deleteStream`. Write
    /// it, or just close the socket, which servers take for the same.
    pub fn unpublish(&mut self) {
        if self.over {
            return;
        }
        self.over = true;
        if self.publish_sent {
            let (stream, id) = (self.stream(), Value::Number(self.stream_id.into()));
            self.command(
                0,
                "FCUnpublish",
                transaction::FC_UNPUBLISH,
                &[Value::Null, stream],
            );
            self.command(
                0,
                "deleteStream",
                transaction::DELETE_STREAM,
                &[Value::Null, id],
            );
        }
    }

    fn media(&mut self, chunk_stream: u8, type_id: u8, timestamp_ms: u32, body: &[&[u8]]) {
        if self.ready_for_media() {
            self.writer.message(
                &mut self.output,
                chunk_stream,
                type_id,
                self.stream_id,
                timestamp_ms,
                body,
            );
        }
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while self.progress == Progress::Handshake && !bytes.is_empty() {
            let size = match self.handshake.len() {
                0..S0_S1 => S0_S1,
                _ => S0_S1_S2,
            };
            let missing = size - self.handshake.len();
            let (head, rest) = bytes.split_at(bytes.len().min(missing));
            self.handshake.extend(head);
            bytes = rest;
            if self.handshake[0] != VERSION {
                return Err(Error::new(format!(
                    "the server answers {:#04x} where RTMP says 0x03: is this the RTMP port?",
                    self.handshake[0]
                )));
            }
            self.handshake_step();
        }
        if !bytes.is_empty() {
            self.reader.push(bytes);
        }
        while let Some(message) = self.reader.next_message()? {
            if !self.over {
                self.message(message)?;
            }
            self.check_answers()?;
        }
        self.acknowledge();
        self.check_answers()
    }

    fn handshake_step(&mut self) {
        let pipelined = self.params.pipelined;
        match self.handshake.len() {
            S0_S1 => {
                // C2 repeats S1, section 5.2.4; its second time field may stay the server's.
                self.output.extend(&self.handshake[1..]);
                if pipelined && !self.over {
                    self.send_connect();
                    self.send_create_stream();
                    self.send_publish();
                }
            }
            S0_S1_S2 => {
                self.handshake.clear();
                self.progress = Progress::Connect;
                if !pipelined && !self.params.pauses && !self.over {
                    self.send_connect();
                }
            }
            _ => {}
        }
    }

    fn message(&mut self, message: Message) -> Result<(), Error> {
        match message.type_id {
            message_type::ACKNOWLEDGEMENT => {
                if let Some(sequence) = message.number() {
                    // The sequence number has 32 bits and wraps (section 5.4.3).
                    let known = self.acknowledged.unwrap_or(0);
                    let more = sequence.wrapping_sub(known as u32);
                    if more <= i32::MAX as u32 {
                        self.acknowledged = Some(known + u64::from(more));
                    }
                }
            }
            message_type::WINDOW_ACKNOWLEDGEMENT_SIZE => {
                self.window_of_peer = message.number().filter(|size| *size > 0);
            }
            message_type::SET_PEER_BANDWIDTH => {
                if let Some(size) = message.number() {
                    self.send_window(size.min(WINDOW));
                }
            }
            message_type::USER_CONTROL => self.user_control(&message.body),
            message_type::COMMAND_AMF0 => self.answer(&message.body)?,
            // One byte for the format, then AMF 0 until a marker says otherwise.
            message_type::COMMAND_AMF3 => self.answer(message.body.get(1..).unwrap_or(&[]))?,
            _ => {}
        }
        Ok(())
    }

    fn user_control(&mut self, body: &[u8]) {
        if body.get(..2) == Some(&user_control::PING_REQUEST.to_be_bytes())
            && let Some(time) = body.get(2..6)
        {
            let [a, b] = user_control::PING_RESPONSE.to_be_bytes();
            let answer = [&[a, b], time].concat();
            self.control(message_type::USER_CONTROL, &answer);
        }
    }

    fn acknowledge(&mut self) {
        let Some(window) = self.window_of_peer.filter(|_| !self.over) else {
            return;
        };
        if self.received_bytes - self.acknowledged_to_peer >= u64::from(window) {
            self.acknowledged_to_peer = self.received_bytes;
            let sequence = (self.received_bytes as u32).to_be_bytes();
            self.control(message_type::ACKNOWLEDGEMENT, &sequence);
        }
    }

    fn check_answers(&self) -> Result<(), Error> {
        if self.answers > MAX_ANSWERS {
            return Err(Error::new(format!(
                "the server asks and does not read: more than {MAX_ANSWERS} bytes of answers wait"
            )));
        }
        Ok(())
    }

    fn answer(&mut self, body: &[u8]) -> Result<(), Error> {
        let values = amf0::decode(body);
        let Some(name) = values.first().and_then(Value::as_str) else {
            return Err(Error::new("the server sent a command without a name"));
        };
        let to = values.get(1).and_then(Value::as_number);
        let answers = |id: u32| to == Some(f64::from(id));
        let information = values.iter().find(|value| value.get("code").is_some());
        match name {
            "_result" if answers(transaction::CONNECT) => {
                let version = values
                    .iter()
                    .find_map(|value| value.get("fmsVer")?.as_str());
                let version = version.map(|version| version.chars().take(MAX_TEXT).collect());
                self.server_version = version;
                self.step(Progress::Connect, Self::send_create_stream)
            }
            "_result" if answers(transaction::CREATE_STREAM) => {
                let id = values.get(3).and_then(Value::as_number);
                let id = id.filter(|id| (1.0..=f64::from(u32::MAX)).contains(id));
                let Some(id) = id.map(|id| id as u32) else {
                    return Err(Error::new(
                        "the server's answer to createStream holds no stream id",
                    ));
                };
                if !self.params.pipelined && !self.publish_sent {
                    self.stream_id = id;
                } else if id != self.stream_id {
                    self.end(Event::StreamIdMismatch);
                    return Ok(());
                }
                self.step(Progress::CreateStream, Self::send_publish)
            }
            "_error"
                if answers(transaction::CONNECT)
                    || answers(transaction::CREATE_STREAM)
                    || answers(transaction::PUBLISH) =>
            {
                let description = information.and_then(|info| info.get("description")?.as_str());
                let to_connect = answers(transaction::CONNECT);
                let demand = description.filter(|_| to_connect).and_then(Demand::parse);
                let redirect = information.filter(|_| to_connect).and_then(redirect);
                match (demand, redirect) {
                    (Some(demand), _) => self.end(Event::LoginDemanded(demand)),
                    (None, Some(url)) => self.end(Event::Redirected(url.to_owned())),
                    (None, None) => self.refused(information),
                }
            }
            "onStatus" => {
                let text = |name| information?.get(name)?.as_str();
                let code = text("code").unwrap_or_default();
                if code == "NetStream.Publish.Start" {
                    if self.publish_sent && self.progress < Progress::Published {
                        self.progress = Progress::Published;
                        self.events.push_back(Event::Published);
                    }
                } else if text("level") == Some("error") || kind_of(code) != RefusalKind::Other {
                    self.refused(information);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Moves on from `awaited` once; a repeated answer changes nothing.
    fn step(&mut self, awaited: Progress, send: fn(&mut Self)) {
        if self.progress != awaited {
            return;
        }
        self.progress = match awaited {
            Progress::Connect => Progress::CreateStream,
            _ => Progress::Publish,
        };
        if !self.params.pipelined {
            send(self);
        }
    }

    fn refused(&mut self, information: Option<&Value>) {
        let text = |name| information?.get(name)?.as_str();
        let code = text("code").unwrap_or("no code");
        let kind = match kind_of(code) {
            // It is about the login, which has just been given.
            RefusalKind::Application if self.params.login.is_some() => RefusalKind::Credentials,
            kind => kind,
        };
        let event = Event::Refused {
            code: self.without_secrets(code),
            description: self.without_secrets(text("description").unwrap_or_default()),
            kind,
        };
        self.end(event);
    }

    fn end(&mut self, event: Event) {
        self.over = true;
        self.events.push_back(event);
    }

    /// A server's text, bounded, on one line, and without what it may repeat of ours.
    fn without_secrets(&self, text: &str) -> String {
        // Cutting comes last, so that no beginning of a secret is left at the end.
        let mut text = on_one_line(text);
        let query_of = |name: &Secret| {
            let query = name.expose().split_once('?');
            query.map_or(String::new(), |(_, query)| query.to_owned())
        };
        let queries = [&self.params.stream, &self.params.app].map(query_of);
        let login = self.params.login.as_ref().map_or("", Secret::expose);
        let pairs = |query| {
            let parameters = str::split(query, '&');
            parameters.map(|pair| pair.split_once('=').unwrap_or(("", pair)))
        };
        let values = queries
            .iter()
            .flat_map(|query| pairs(query))
            .filter(|(name, _)| *name != "user")
            // The rest of a login is public.
            .chain(pairs(login).filter(|(name, _)| *name == "response"))
            .map(|(_, value)| value);
        let whole = queries.iter().map(String::as_str).chain([login]);
        for secret in whole.chain(values) {
            let decoded = percent_decode(secret).unwrap_or_default();
            for form in [on_one_line(secret), on_one_line(&decoded)] {
                if !form.is_empty() {
                    text = text.replace(&form, "…");
                }
            }
        }
        text.chars().take(MAX_TEXT).collect()
    }

    fn send_connect(&mut self) {
        self.connect_sent = true;
        self.writer.set_chunk_size(&mut self.output, CHUNK_SIZE);
        self.send_window(WINDOW);
        let with_login = |text: &Secret| match (&self.params.login, text.expose()) {
            (None, text) => text.into(),
            (Some(login), text) => {
                let between = if text.contains('?') { '&' } else { '?' };
                Value::String(format!("{text}{between}{}", login.expose()))
            }
        };
        let mut members = vec![
            ("app".into(), with_login(&self.params.app)),
            ("type".into(), "nonprivate".into()),
            (
                "flashVer".into(),
                "FMLE/3.0 (compatible; droidrelay)".into(),
            ),
            ("tcUrl".into(), with_login(&self.params.tc_url)),
        ];
        if self.params.hevc {
            let list = Value::StrictArray(vec!["hvc1".into()]);
            members.push(("fourCcList".into(), list));
        }
        let members = Value::Object(members);
        self.command(0, "connect", transaction::CONNECT, &[members]);
    }

    fn send_create_stream(&mut self) {
        // The first two name the stream, as Flash Media Server and its heirs expect it.
        let named = [Value::Null, self.stream()];
        self.command(0, "releaseStream", transaction::RELEASE_STREAM, &named);
        self.command(0, "FCPublish", transaction::FC_PUBLISH, &named);
        self.command(
            0,
            "createStream",
            transaction::CREATE_STREAM,
            &[Value::Null],
        );
    }

    fn send_publish(&mut self) {
        let arguments = [Value::Null, self.stream(), "live".into()];
        self.command(self.stream_id, "publish", transaction::PUBLISH, &arguments);
        self.publish_sent = true;
    }

    fn stream(&self) -> Value {
        self.params.stream.expose().into()
    }

    fn command(&mut self, stream_id: u32, name: &str, transaction: u32, arguments: &[Value]) {
        self.writer.message(
            &mut self.output,
            chunk_stream::COMMAND,
            message_type::COMMAND_AMF0,
            stream_id,
            0,
            &[&command(name, transaction, arguments)],
        );
    }

    fn send_window(&mut self, size: u32) {
        self.control(
            message_type::WINDOW_ACKNOWLEDGEMENT_SIZE,
            &size.to_be_bytes(),
        );
    }

    fn control(&mut self, type_id: u8, body: &[u8]) {
        let before = self.output.len();
        self.writer.control(&mut self.output, type_id, body);
        self.answers += self.output.len() - before;
    }
}

fn command(name: &str, transaction: u32, arguments: &[Value]) -> Vec<u8> {
    let mut body = Vec::new();
    amf0::encode_string(&mut body, name);
    Value::Number(transaction.into()).encode(&mut body);
    arguments.iter().for_each(|value| value.encode(&mut body));
    body
}

fn on_one_line(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(plain).collect()
}

/// Where a rejected connection is sent, as servers of Flash Media Server's kind say it.
fn redirect(information: &Value) -> Option<&str> {
    let more = information.get("ex")?;
    let code = more.get("code")?.as_number()?;
    let url = more.get("redirect")?.as_str()?;
    (code == REDIRECTED && url.len() <= MAX_TEXT).then_some(url)
}

fn kind_of(code: &str) -> RefusalKind {
    match code {
        "NetConnection.Connect.Rejected" | "NetConnection.Connect.InvalidApp" => {
            RefusalKind::Application
        }
        _ => match code.rsplit('.').next() {
            Some("Unauthorized" | "NotAuthorized" | "Denied") => RefusalKind::Credentials,
            Some("BadName") => RefusalKind::PathTaken,
            _ => RefusalKind::Other,
        },
    }
}

#[cfg(test)]
mod tests;
