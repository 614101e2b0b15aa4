// SPDX-License-Identifier: MPL-2.0

//! A server that publishers of any make can be tested with: on real sockets, made of the same
//! chunk and value layers. Keeps nothing of the media.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use droidrelay_testkit::journal::{DEADLINE, Journal};
use droidrelay_wire::Secret;

use super::{
    amf0::{self, Value},
    auth::{Challenge, Method},
    chunk::{ChunkReader, ChunkWriter, Message, message_type},
    flv::{TagKind, is_audio_sequence_header, is_video_sequence_header},
};

const HANDSHAKE_SIZE: usize = 1536;
/// Between the bytes of [`Fault::Trickle`].
const TRICKLE: Duration = Duration::from_millis(100);
const REJECTED: &str = "NetConnection.Connect.Rejected";

/// Whom it lets in.
#[derive(Clone, Debug)]
pub enum Access {
    Everybody,
    /// Who answers `challenge`.
    Login {
        user: String,
        password: String,
        challenge: Challenge,
        /// The challenge comes at once, also to who has not named a user.
        at_once: bool,
    },
    /// Nobody: asks for a login whatever comes.
    Nobody(&'static str),
}

/// Where in a session something goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing has been said yet.
    Accept,
    /// C0 and C1 have come.
    Hello,
    /// Half of S1 is on its way.
    HalfHello,
    /// The handshake is done.
    Handshake,
    /// A command has come and is not answered.
    Connect,
    CreateStream,
    Publish,
    /// Media comes.
    Media,
}

impl Step {
    pub const ALL: [Step; 8] = [
        Step::Accept,
        Step::Hello,
        Step::HalfHello,
        Step::Handshake,
        Step::Connect,
        Step::CreateStream,
        Step::Publish,
        Step::Media,
    ];
}

/// What goes wrong there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection is closed.
    Drop,
    /// Nothing more is said or read, and the connection stays.
    Stall,
    /// Something is said that is not RTMP.
    Garbage,
    /// Byte after byte trickles in of what never gets whole, and the connection stays.
    Trickle,
}

/// In what it differs from most servers, as some do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quirk {
    /// What it reads together with C2 is lost.
    EatsWithC2,
    /// Closes the connection where something comes ahead of its answer to the step's command.
    ClosesOnHaste(Step),
    /// Loses what comes ahead of its answer to the step's command.
    LosesHaste(Step),
    /// Closes the connection at a `connect` that has a `fourCcList`.
    ClosesOnFourCcList,
    /// Gives no answer to a `connect` that has a `fourCcList`.
    IgnoresFourCcList,
    /// Accepts every publisher and closes the connection then.
    ClosesOncePublished,
    /// Does so, but each third connection is closed at once.
    ClosesAndFails,
    /// Rejects each connection, and names another server's application.
    Redirects(String),
    /// Rejects each connection, for a reason that is not the login.
    HasNoSuchApplication,
    /// Its first stream has this id, and a `publish` of another stream is lost.
    CountsFrom(u32),
    /// Refuses each publisher for its credentials, so long after `publish`.
    DeniesAfter(Duration),
}

/// Within this time comes what does not wait for an answer.
const HASTE: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Script {
    fault: Mutex<Option<(Step, Fault)>>,
    quirk: Mutex<Option<Quirk>>,
    /// What it calls itself.
    version: Mutex<Option<&'static str>>,
    connections: AtomicUsize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The application as it was asked for, with its query.
    Connect(String),
    Rejected(String),
    Accepted,
    /// The stream name as it came.
    Publish(String),
    Video,
    /// The first frame, at this time of the session in milliseconds; headers have come before it.
    FirstFrame(u32),
    /// A frame, at this time of the session in milliseconds.
    Frame(TagKind, u32),
    /// The publisher has ended the stream.
    Ended,
    /// Something came ahead of an answer.
    Hasty,
    /// Something went wrong as it should.
    Failed,
}

pub struct Server {
    port: u16,
    seen: Journal<Seen>,
    script: Arc<Script>,
}

impl Server {
    /// Listens until the process ends.
    pub fn start(access: Access) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Journal::default();
        let script = Arc::<Script>::default();
        let server = Server {
            port,
            seen: seen.clone(),
            script: script.clone(),
        };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (access, seen, script) = (access.clone(), seen.clone(), script.clone());
                // What a client breaks off harms only itself.
                thread::spawn(move || Connection::new(stream, access, seen, script).serve());
            }
        });
        server
    }

    /// As [`Server::start`], for everybody, with a quirk.
    pub fn quirky(quirk: Quirk) -> Self {
        let server = Self::start(Access::Everybody);
        server.set_quirk(Some(quirk));
        server
    }

    /// What goes wrong from now on in each session, if anything.
    pub fn fail(&self, fault: Option<(Step, Fault)>) {
        *self
            .script
            .fault
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// In what it differs from others from now on.
    pub fn set_quirk(&self, quirk: Option<Quirk>) {
        *self
            .script
            .quirk
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = quirk;
    }

    /// What it says as `fmsVer` from now on, if anything.
    pub fn call_itself(&self, version: Option<&'static str>) {
        let name = self.script.version.lock();
        *name.unwrap_or_else(PoisonError::into_inner) = version;
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("rtmp://127.0.0.1:{}/live/stream", self.port)
    }

    pub fn seen(&self) -> &Journal<Seen> {
        &self.seen
    }
}

struct Connection {
    stream: TcpStream,
    access: Access,
    seen: Journal<Seen>,
    script: Arc<Script>,
    reader: ChunkReader,
    writer: ChunkWriter,
    has_frames: bool,
}

impl Connection {
    fn new(stream: TcpStream, access: Access, seen: Journal<Seen>, script: Arc<Script>) -> Self {
        Connection {
            stream,
            access,
            seen,
            script,
            reader: ChunkReader::new(),
            writer: ChunkWriter::new(),
            has_frames: false,
        }
    }

    fn serve(mut self) -> io::Result<()> {
        self.stream.set_nodelay(true)?;
        self.stream.set_read_timeout(Some(DEADLINE))?;
        let earlier = self.script.connections.fetch_add(1, Ordering::Relaxed);
        if self.quirk() == Some(Quirk::ClosesAndFails) && earlier % 3 == 2 {
            self.seen.push(Seen::Failed);
            return Ok(());
        }
        self.reach(Step::Accept)?;
        let mut hello = [0; 1 + HANDSHAKE_SIZE];
        self.stream.read_exact(&mut hello)?;
        self.reach(Step::Hello)?;
        self.stream.write_all(&[3; HANDSHAKE_SIZE / 2])?;
        self.reach(Step::HalfHello)?;
        self.stream
            .write_all(&[3; 1 + HANDSHAKE_SIZE - HANDSHAKE_SIZE / 2])?;
        self.stream.write_all(&hello[1..])?;
        let mut input = [0; 4096];
        self.read_c2(&mut hello[1..])?;
        self.reach(Step::Handshake)?;
        loop {
            let count = self.stream.read(&mut input)?;
            if count == 0 {
                return Ok(());
            }
            self.reader.push(&input[..count]);
            while let Some(message) = self.reader.next_message().map_err(io::Error::other)? {
                self.message(&message)?;
            }
        }
    }

    fn quirk(&self) -> Option<Quirk> {
        let quirk = self.script.quirk.lock();
        quirk.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn first_stream(&self) -> u32 {
        match self.quirk() {
            Some(Quirk::CountsFrom(first)) => first,
            _ => 1,
        }
    }

    fn read_c2(&mut self, c2: &mut [u8]) -> io::Result<()> {
        self.stream.read_exact(c2)?;
        if self.quirk() == Some(Quirk::EatsWithC2) && self.is_hasty()? {
            self.reader.discard();
        }
        Ok(())
    }

    /// Whether something more comes before we have answered; it is then in the reader.
    fn is_hasty(&mut self) -> io::Result<bool> {
        let mut more = [0; 65_536];
        self.stream.set_read_timeout(Some(HASTE))?;
        let count = match self.stream.read(&mut more) {
            Ok(count) => count,
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => 0,
            Err(err) => return Err(err),
        };
        self.stream.set_read_timeout(Some(DEADLINE))?;
        let kept = self.reader.waiting();
        self.reader.push(&more[..count]);
        let is_hasty = kept + count > 0;
        if is_hasty {
            self.seen.push(Seen::Hasty);
        }
        Ok(is_hasty)
    }

    /// Does what the server's quirk is at a step's command.
    fn be_quirky(&mut self, step: Step) -> io::Result<()> {
        let quirk = self.quirk();
        let (closes, loses) = (
            quirk == Some(Quirk::ClosesOnHaste(step)),
            quirk == Some(Quirk::LosesHaste(step)),
        );
        if (closes || loses) && self.is_hasty()? {
            if closes {
                self.stream.shutdown(Shutdown::Both)?;
                return Err(io::ErrorKind::Other.into());
            }
            self.reader.discard();
        }
        Ok(())
    }

    /// Goes wrong where that is this step's fate.
    fn reach(&mut self, step: Step) -> io::Result<()> {
        self.be_quirky(step)?;
        let fate = *self
            .script
            .fault
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some((_, fault)) = fate.filter(|(at, _)| *at == step) else {
            return Ok(());
        };
        self.seen.push(Seen::Failed);
        match fault {
            Fault::Drop => self.stream.shutdown(Shutdown::Both)?,
            // With its socket, until the process ends.
            Fault::Stall => loop {
                thread::park();
            },
            Fault::Trickle => self.trickle(step)?,
            // Also at the handshake's and a chunk's borders no RTMP.
            Fault::Garbage => self.stream.write_all(&[0xff; 8192])?,
        }
        Err(io::ErrorKind::Other.into())
    }

    /// Bytes of a handshake, or of a command that is longer than anybody waits for.
    fn trickle(&mut self, step: Step) -> io::Result<()> {
        let in_handshake = matches!(step, Step::Accept | Step::Hello | Step::HalfHello);
        let begin: &[u8] = if in_handshake {
            &[3]
        } else {
            &[
                3,
                0,
                0,
                0,
                0,
                0xff,
                0xff,
                message_type::COMMAND_AMF0,
                0,
                0,
                0,
                0,
            ]
        };
        let endless = begin.iter().chain(std::iter::repeat(&3));
        for byte in endless.take(HANDSHAKE_SIZE / 2 - 1) {
            self.stream.write_all(&[*byte])?;
            thread::sleep(TRICKLE);
        }
        Ok(())
    }

    fn message(&mut self, message: &Message) -> io::Result<()> {
        match message.type_id {
            message_type::VIDEO => {
                self.seen.push(Seen::Video);
                if !is_video_sequence_header(&message.body) {
                    if !std::mem::replace(&mut self.has_frames, true) {
                        self.seen.push(Seen::FirstFrame(message.timestamp));
                    }
                    let frame = Seen::Frame(TagKind::Video, message.timestamp);
                    self.seen.push(frame);
                }
                self.reach(Step::Media)?;
            }
            message_type::AUDIO if !is_audio_sequence_header(&message.body) => {
                let frame = Seen::Frame(TagKind::Audio, message.timestamp);
                self.seen.push(frame);
            }
            message_type::COMMAND_AMF0 => {
                self.command(message.stream_id, &amf0::decode(&message.body))?
            }
            _ => {}
        }
        Ok(())
    }

    fn command(&mut self, stream_id: u32, values: &[Value]) -> io::Result<()> {
        let text = |at: usize| values.get(at).and_then(Value::as_str).unwrap_or_default();
        let id = values.get(1).and_then(Value::as_number).unwrap_or_default();
        match text(0) {
            "connect" => {
                self.reach(Step::Connect)?;
                let app = values.get(2).and_then(|value| value.get("app")?.as_str());
                let app = app.unwrap_or_default();
                self.seen.push(Seen::Connect(app.to_owned()));
                let has_list = values
                    .get(2)
                    .is_some_and(|value| value.get("fourCcList").is_some());
                match self.quirk() {
                    Some(Quirk::IgnoresFourCcList) if has_list => return Ok(()),
                    Some(Quirk::ClosesOnFourCcList) if has_list => {
                        self.stream.shutdown(Shutdown::Both)?;
                        return Err(io::ErrorKind::Other.into());
                    }
                    Some(Quirk::Redirects(url)) => return self.redirect(id, &url),
                    Some(Quirk::HasNoSuchApplication) => {
                        return self.reject(id, "No such scope on this server.");
                    }
                    _ => {}
                }
                match self.access.objection(app) {
                    None => {
                        self.seen.push(Seen::Accepted);
                        let success = status("status", "NetConnection.Connect.Success", "");
                        let version = self.script.version.lock();
                        let version = *version.unwrap_or_else(PoisonError::into_inner);
                        let properties = version.map_or(Value::Null, |version| {
                            Value::Object(vec![("fmsVer".to_owned(), version.into())])
                        });
                        self.send("_result", id, &[properties, success])?;
                    }
                    Some(description) => {
                        self.reject(id, &description)?;
                    }
                }
            }
            "createStream" => {
                self.reach(Step::CreateStream)?;
                let first = Value::Number(self.first_stream().into());
                self.send("_result", id, &[Value::Null, first])?;
            }
            "deleteStream" => self.seen.push(Seen::Ended),
            "publish" if stream_id != self.first_stream() => self.seen.push(Seen::Hasty),
            "publish" => {
                self.reach(Step::Publish)?;
                self.seen.push(Seen::Publish(text(3).to_owned()));
                if let Some(Quirk::DeniesAfter(delay)) = self.quirk() {
                    thread::sleep(delay);
                    let denied = status("error", "NetStream.Publish.Unauthorized", "wrong");
                    return self.send("onStatus", 0.0, &[Value::Null, denied]);
                }
                let started = status("status", "NetStream.Publish.Start", "");
                self.send("onStatus", 0.0, &[Value::Null, started])?;
                let closes = [Quirk::ClosesOncePublished, Quirk::ClosesAndFails];
                if self.quirk().is_some_and(|quirk| closes.contains(&quirk)) {
                    // What is not read would take the answer back.
                    self.stream.shutdown(Shutdown::Write)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn reject(&mut self, id: f64, description: &str) -> io::Result<()> {
        self.seen.push(Seen::Rejected(description.to_owned()));
        let rejected = status("error", REJECTED, description);
        self.send("_error", id, &[Value::Null, rejected])?;
        self.send("close", 0.0, &[Value::Null])?;
        self.stream.shutdown(Shutdown::Write)
    }

    fn redirect(&mut self, id: f64, url: &str) -> io::Result<()> {
        self.seen.push(Seen::Rejected(url.to_owned()));
        let more = Value::Object(vec![
            ("code".into(), Value::Number(302.0)),
            ("redirect".into(), url.into()),
        ]);
        let Value::Object(mut members) = status("error", REJECTED, "redirected") else {
            unreachable!("a status is an object");
        };
        members.push(("ex".into(), more));
        self.send("_error", id, &[Value::Null, Value::Object(members)])
    }

    fn send(&mut self, name: &str, id: f64, rest: &[Value]) -> io::Result<()> {
        let mut body = Vec::new();
        amf0::encode_string(&mut body, name);
        Value::Number(id).encode(&mut body);
        rest.iter().for_each(|value| value.encode(&mut body));
        let mut out = Vec::new();
        let stream = u32::from(name == "onStatus");
        let kind = message_type::COMMAND_AMF0;
        self.writer.message(&mut out, 3, kind, stream, 0, &[&body]);
        self.stream.write_all(&out)
    }
}

impl Access {
    /// What a rejection says to who asks for `app`.
    fn objection(&self, app: &str) -> Option<String> {
        let (user, password, challenge, at_once) = match self {
            Access::Everybody => return None,
            Access::Nobody(description) => return Some((*description).to_owned()),
            Access::Login {
                user,
                password,
                challenge,
                at_once,
            } => (user, password, challenge, *at_once),
        };
        let method = match challenge {
            Challenge::Adobe { .. } => Method::Adobe,
            Challenge::Limelight { .. } => Method::Limelight,
        };
        let name = method.name();
        let (app, query) = app.split_once('?').unwrap_or((app, ""));
        if query.is_empty() && !at_once {
            return Some(format!(
                "[ AccessManager.Reject ] : [ code=403 need auth; authmod={name} ] : "
            ));
        }
        let asked = match challenge {
            Challenge::Adobe {
                salt,
                challenge,
                opaque,
            } => {
                let opaque = opaque.iter().map(|opaque| format!("&opaque={opaque}"));
                let opaque: String = opaque.collect();
                format!("salt={salt}&challenge={challenge}{opaque}")
            }
            Challenge::Limelight { nonce } => format!("nonce={nonce}"),
        };
        let value = |name| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            Some(pairs.find(|(key, _)| *key == name)?.1)
        };
        let Some(response) = value("response") else {
            return Some(format!(
                "[ AccessManager.Reject ] : [ authmod={name} ] : ?reason=needauth&user={user}&{asked}"
            ));
        };
        let nonce = value("cnonce").or(value("challenge")).unwrap_or_default();
        let nonce = u32::from_str_radix(nonce, 16).unwrap_or_default();
        let expected = challenge.answer(app, user, &Secret::new(password.as_str()), nonce);
        let right = expected
            .expose()
            .split('&')
            .any(|pair| pair.strip_prefix("response=") == Some(response));
        (!right).then(|| {
            format!("[ AccessManager.Reject ] : [ authmod={name} ] : ?reason=authfailed&opaque=")
        })
    }
}

fn status(level: &str, code: &str, description: &str) -> Value {
    let text = |name: &str, text: &str| (name.to_owned(), text.into());
    Value::Object(vec![
        text("level", level),
        text("code", code),
        text("description", description),
    ])
}
