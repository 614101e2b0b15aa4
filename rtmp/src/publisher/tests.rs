// SPDX-License-Identifier: MPL-2.0

//! The publisher against a scripted server made of the same chunk and value layers.

use super::super::{Noise, auth::Method};
use super::*;

const STREAM: &str = "robot?user=pub&pass=hunter2%2F";

fn publisher(pipelined: bool) -> Publisher {
    let params = Params {
        app: "live".into(),
        tc_url: "rtmp://127.0.0.1:1935/live".into(),
        stream: STREAM.into(),
        login: None,
        pipelined,
        hevc: false,
        pauses: false,
    };
    Publisher::new(params, &[1, 2, 3])
}

fn s1() -> Vec<u8> {
    (0..HANDSHAKE_SIZE).map(|n| (n * 7) as u8).collect()
}

fn s0_s1_s2() -> Vec<u8> {
    [vec![VERSION], s1(), vec![9; HANDSHAKE_SIZE]].concat()
}

fn written(publisher: &mut Publisher) -> Vec<u8> {
    let bytes = publisher.output().to_vec();
    publisher.consume(bytes.len());
    bytes
}

/// What the server reads behind the handshake, and how it answers.
struct Server {
    reader: ChunkReader,
    writer: ChunkWriter,
}

impl Server {
    /// Does the server's side of the handshake.
    fn greet(publisher: &mut Publisher) -> Server {
        assert_eq!(written(publisher).len(), 1 + HANDSHAKE_SIZE);
        publisher.input(&s0_s1_s2()).unwrap();
        assert!(publisher.output().starts_with(&s1()));
        publisher.consume(HANDSHAKE_SIZE);
        Server {
            reader: ChunkReader::new(),
            writer: ChunkWriter::new(),
        }
    }

    fn read(&mut self, publisher: &mut Publisher) -> Vec<Message> {
        self.reader.push(&written(publisher));
        std::iter::from_fn(|| self.reader.next_message().unwrap()).collect()
    }

    /// The commands among what the publisher sent, as values.
    fn commands(&mut self, publisher: &mut Publisher) -> Vec<Vec<Value>> {
        self.read(publisher)
            .iter()
            .filter(|message| message.type_id == message_type::COMMAND_AMF0)
            .map(|message| amf0::decode(&message.body))
            .collect()
    }

    fn send(&mut self, publisher: &mut Publisher, type_id: u8, body: &[u8]) {
        let mut out = Vec::new();
        self.writer.message(&mut out, 3, type_id, 0, 0, &[body]);
        publisher.input(&out).unwrap();
    }

    fn command(&mut self, publisher: &mut Publisher, name: &str, id: u32, rest: &[Value]) {
        let mut body = command(name, id, &[Value::Null]);
        rest.iter().for_each(|value| value.encode(&mut body));
        self.send(publisher, message_type::COMMAND_AMF0, &body);
    }

    fn accept_connect(&mut self, publisher: &mut Publisher) {
        let success = status("status", "NetConnection.Connect.Success", "");
        self.command(publisher, "_result", 1, &[success]);
    }

    fn status(&mut self, publisher: &mut Publisher, level: &str, code: &str, description: &str) {
        let information = status(level, code, description);
        self.command(publisher, "onStatus", 0, &[information]);
    }

    fn start(&mut self, publisher: &mut Publisher) {
        self.accept_connect(publisher);
        self.command(publisher, "_result", 4, &[Value::Number(1.0)]);
        self.status(publisher, "status", "NetStream.Publish.Start", "");
    }
}

fn status(level: &str, code: &str, description: &str) -> Value {
    Value::Object(vec![
        ("level".into(), level.into()),
        ("code".into(), code.into()),
        ("description".into(), description.into()),
    ])
}

fn names(commands: &[Vec<Value>]) -> Vec<&str> {
    commands
        .iter()
        .map(|values| values[0].as_str().unwrap())
        .collect()
}

fn refusal(publisher: &mut Publisher) -> (String, String, RefusalKind) {
    match publisher.next_event() {
        Some(Event::Refused {
            code,
            description,
            kind,
        }) => (code, description, kind),
        other => panic!("a refusal was expected, not {other:?}"),
    }
}

#[test]
fn the_handshake_is_done_in_every_split_of_its_bytes() {
    let bytes = s0_s1_s2();
    let mut whole = publisher(true);
    assert_eq!(whole.output()[..12], [3, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]);
    whole.input(&bytes).unwrap();
    assert_eq!(whole.progress(), Progress::Connect);
    for split in 0..=bytes.len() {
        let mut publisher = publisher(true);
        publisher.input(&bytes[..split]).unwrap();
        assert_eq!(publisher.ready_for_media(), split > HANDSHAKE_SIZE);
        publisher.input(&bytes[split..]).unwrap();
        assert_eq!(publisher.output(), whole.output(), "split at {split}");
        assert_eq!(publisher.progress(), Progress::Connect);
    }
    let mut single = publisher(true);
    for byte in &bytes {
        single.input(std::slice::from_ref(byte)).unwrap();
    }
    assert_eq!(single.output(), whole.output());
}

#[test]
fn a_server_that_does_not_speak_rtmp_is_named_at_its_first_byte() {
    let mut publisher = publisher(true);
    let error = publisher.input(b"H").unwrap_err();
    assert!(error.to_string().contains("0x48"), "{error}");
    assert_eq!(publisher.input(&s0_s1_s2()).unwrap_err(), error);
    assert!(!publisher.ready_for_media());
}

#[test]
fn pipelined_everything_goes_out_behind_the_handshake_in_order() {
    let mut publisher = publisher(true);
    let mut server = Server::greet(&mut publisher);
    assert!(publisher.ready_for_media() && !publisher.is_published());
    publisher.metadata(&Metadata::default());
    publisher.video(0, &[&[0x17, 0, 0, 0, 0], b"avcc"]);
    let messages = server.read(&mut publisher);
    let types: Vec<(u8, u32)> = messages.iter().map(|m| (m.type_id, m.stream_id)).collect();
    // Window, connect, releaseStream, FCPublish, createStream, publish, data, video. (The
    // chunk size is the reader's own business.)
    assert_eq!(
        types,
        [
            (5, 0),
            (20, 0),
            (20, 0),
            (20, 0),
            (20, 0),
            (20, 1),
            (18, 1),
            (9, 1)
        ]
    );
    let commands: Vec<Vec<Value>> = messages[1..6]
        .iter()
        .map(|message| amf0::decode(&message.body))
        .collect();
    assert_eq!(
        names(&commands),
        [
            "connect",
            "releaseStream",
            "FCPublish",
            "createStream",
            "publish"
        ]
    );
    for (n, command) in commands.iter().enumerate() {
        assert_eq!(command[1], Value::Number(n as f64 + 1.0));
    }
    let object = &commands[0][2];
    let text = |name| object.get(name).and_then(Value::as_str);
    assert_eq!(text("app"), Some("live"));
    assert_eq!(text("tcUrl"), Some("rtmp://127.0.0.1:1935/live"));
    assert_eq!(object.get("fourCcList"), None);
    assert_eq!(commands[1][3], Value::from(STREAM));
    assert_eq!(commands[4][3..], [Value::from(STREAM), "live".into()]);
    assert_eq!(messages[7].body, b"\x17\0\0\0\0avcc");
    let data = amf0::decode(&messages[6].body);
    assert_eq!(
        names(&[data[..1].to_vec(), data[1..2].to_vec()]),
        ["@setDataFrame", "onMetaData"]
    );
    assert_eq!(publisher.next_event(), None);

    server.start(&mut publisher);
    assert_eq!(publisher.next_event(), Some(Event::Published));
    assert_eq!(publisher.next_event(), None);
    assert!(publisher.is_published());
    assert!(server.commands(&mut publisher).is_empty());
}

#[test]
fn step_by_step_each_command_waits_for_the_answer_before_it() {
    let mut publisher = publisher(false);
    written(&mut publisher);
    publisher.input(&s0_s1_s2()[..1 + HANDSHAKE_SIZE]).unwrap();
    assert_eq!(written(&mut publisher), s1(), "C2 alone before S2");
    publisher.input(&[0; HANDSHAKE_SIZE]).unwrap();
    let mut server = Server {
        reader: ChunkReader::new(),
        writer: ChunkWriter::new(),
    };
    assert_eq!(names(&server.commands(&mut publisher)), ["connect"]);
    assert_eq!(publisher.progress(), Progress::Connect);
    server.accept_connect(&mut publisher);
    assert_eq!(
        names(&server.commands(&mut publisher)),
        ["releaseStream", "FCPublish", "createStream"]
    );
    server.accept_connect(&mut publisher);
    assert!(server.commands(&mut publisher).is_empty(), "answered twice");
    server.command(&mut publisher, "_error", 2, &[]);
    assert_eq!(publisher.progress(), Progress::CreateStream);
    server.command(&mut publisher, "_result", 4, &[Value::Number(5.0)]);
    let publish = server.read(&mut publisher).pop().unwrap();
    assert_eq!(publish.stream_id, 5);
    assert_eq!(publisher.progress(), Progress::Publish);
    publisher.video(0, &[b"too early"]);
    assert!(!publisher.ready_for_media() && publisher.output().is_empty());
    server.status(&mut publisher, "status", "NetStream.Publish.Start", "");
    assert_eq!(publisher.next_event(), Some(Event::Published));
    assert_eq!(publisher.progress(), Progress::Published);
    publisher.audio(7, &[&[0xaf, 1], b"a"]);
    let audio = server.read(&mut publisher).pop().unwrap();
    assert_eq!((audio.type_id, audio.stream_id, audio.timestamp), (8, 5, 7));
}

#[test]
fn unpublish_names_the_stream_and_ends_the_session() {
    let mut publisher = publisher(true);
    let mut server = Server::greet(&mut publisher);
    server.start(&mut publisher);
    server.read(&mut publisher);
    publisher.unpublish();
    publisher.unpublish();
    publisher.video(0, &[b"too late"]);
    let commands = server.commands(&mut publisher);
    assert_eq!(names(&commands), ["FCUnpublish", "deleteStream"]);
    assert_eq!(commands[0][3], Value::from(STREAM));
    assert_eq!(commands[1][3], Value::Number(1.0));
    assert!(!publisher.is_published() && !publisher.ready_for_media());

    let mut early = Publisher::new(publisher.params.clone(), &[]);
    early.unpublish();
    written(&mut early);
    early.input(&s0_s1_s2()).unwrap();
    assert_eq!(written(&mut early), s1(), "no command once it is over");
}

#[test]
fn refusals_are_told_apart_by_their_codes() {
    for (code, kind) in [
        ("NetStream.Publish.Unauthorized", RefusalKind::Credentials),
        ("NetStream.Publish.Denied", RefusalKind::Credentials),
        ("NetStream.Publish.BadName", RefusalKind::PathTaken),
        ("NetStream.Publish.Failed", RefusalKind::Other),
    ] {
        for pipelined in [true, false] {
            let mut publisher = publisher(pipelined);
            let mut server = Server::greet(&mut publisher);
            server.accept_connect(&mut publisher);
            server.command(&mut publisher, "_result", 4, &[Value::Number(1.0)]);
            server.status(&mut publisher, "error", code, "no");
            assert_eq!(publisher.progress(), Progress::Publish);
            assert_eq!(refusal(&mut publisher), (code.into(), "no".into(), kind));
            assert!(!publisher.ready_for_media());
            server.status(&mut publisher, "error", code, "again");
            assert_eq!(publisher.next_event(), None);
        }
    }
}

#[test]
fn a_rejected_connect_is_a_refusal_at_connect() {
    let mut publisher = publisher(true);
    let mut server = Server::greet(&mut publisher);
    let information = status("error", "NetConnection.Connect.Rejected", "who are you");
    server.command(&mut publisher, "_error", 1, &[information]);
    assert_eq!(publisher.progress(), Progress::Connect);
    let (code, _, kind) = refusal(&mut publisher);
    assert_eq!(code, "NetConnection.Connect.Rejected");
    assert_eq!(kind, RefusalKind::Application);
}

#[test]
fn a_redirect_is_told_with_its_url() {
    for (answer, is_redirect) in [(302.0, true), (404.0, false)] {
        let mut publisher = publisher(true);
        let mut server = Server::greet(&mut publisher);
        let more = Value::Object(vec![
            ("code".into(), Value::Number(answer)),
            ("redirect".into(), "rtmp://other/live".into()),
        ]);
        let information = Value::Object(vec![
            ("code".into(), "NetConnection.Connect.Rejected".into()),
            ("ex".into(), more),
        ]);
        server.command(&mut publisher, "_error", 1, &[information]);
        let told = publisher.next_event();
        let redirected = Event::Redirected("rtmp://other/live".into());
        assert_eq!(told == Some(redirected), is_redirect);
        assert!(!publisher.ready_for_media());
    }
}

#[test]
fn connect_waits_for_the_caller_where_it_is_to_pause() {
    let params = Params {
        pauses: true,
        ..publisher(false).params
    };
    let mut publisher = Publisher::new(params, &[]);
    publisher.connect();
    let mut server = Server::greet(&mut publisher);
    assert!(publisher.output().is_empty() && publisher.awaits_connect());
    assert!(!publisher.has_asked());
    publisher.connect();
    publisher.connect();
    assert_eq!(names(&server.commands(&mut publisher)), ["connect"]);
    assert!(publisher.has_asked() && !publisher.awaits_connect());
}

#[test]
fn a_demand_for_a_login_is_told_and_its_answer_stands_behind_the_application() {
    let mut first = publisher(true);
    let mut server = Server::greet(&mut first);
    let code = "NetConnection.Connect.Rejected";
    let information = status("error", code, "code=403 need auth; authmod=adobe");
    server.command(&mut first, "_error", 1, &[information]);
    let demand = Demand::User(Method::Adobe);
    assert_eq!(first.next_event(), Some(Event::LoginDemanded(demand)));
    assert!(!first.ready_for_media());

    let mut second = publisher(false);
    second.params.login = Some("authmod=adobe&user=pub&response=hunter3==".into());
    let mut server = Server::greet(&mut second);
    let connect = &server.commands(&mut second)[0][2];
    for (member, before) in [("app", "live"), ("tcUrl", "rtmp://127.0.0.1:1935/live")] {
        let expected = format!("{before}?authmod=adobe&user=pub&response=hunter3==");
        assert_eq!(connect.get(member).unwrap().as_str(), Some(&*expected));
    }
    let information = status("error", code, "pub authfailed: hunter3==");
    server.command(&mut second, "_error", 1, &[information]);
    let (_, description, kind) = refusal(&mut second);
    assert_eq!(
        (&*description, kind),
        ("pub authfailed: …", RefusalKind::Credentials)
    );
    assert!(!format!("{second:?}").contains("hunter3"));
}

#[test]
fn the_applications_query_is_sent_with_a_login_behind_it_and_not_shown() {
    let params = Params {
        app: "live?vhost=v&hunter4".into(),
        tc_url: "rtmp://h:1935/live?vhost=v&hunter4".into(),
        login: Some("authmod=adobe&user=pub".into()),
        ..publisher(true).params
    };
    let mut publisher = Publisher::new(params, &[]);
    let mut server = Server::greet(&mut publisher);
    let connect = &server.commands(&mut publisher)[0][2];
    let query = "?vhost=v&hunter4&authmod=adobe&user=pub";
    for (member, before) in [("app", "live"), ("tcUrl", "rtmp://h:1935/live")] {
        let expected = format!("{before}{query}");
        assert_eq!(connect.get(member).unwrap().as_str(), Some(&*expected));
    }
    server.status(
        &mut publisher,
        "error",
        "NetStream.Publish.Failed",
        "not with hunter4",
    );
    assert_eq!(refusal(&mut publisher).1, "not with …");
    assert!(!format!("{publisher:?}").contains("hunter4"));
}

#[test]
fn an_end_by_the_server_is_told_after_publishing_too() {
    let mut publisher = publisher(true);
    let mut server = Server::greet(&mut publisher);
    server.start(&mut publisher);
    assert_eq!(publisher.next_event(), Some(Event::Published));
    server.status(&mut publisher, "status", "NetStream.Record.Start", "");
    assert!(publisher.is_published());
    server.status(&mut publisher, "error", "NetStream.Publish.BadName", "");
    assert_eq!(refusal(&mut publisher).2, RefusalKind::PathTaken);
    assert!(!publisher.is_published());
}

#[test]
fn another_stream_id_than_the_first_is_told_when_pipelined() {
    let mut publisher = publisher(true);
    let mut server = Server::greet(&mut publisher);
    server.accept_connect(&mut publisher);
    server.command(&mut publisher, "_result", 4, &[Value::Number(2.0)]);
    assert_eq!(publisher.next_event(), Some(Event::StreamIdMismatch));
    assert!(!publisher.ready_for_media());
}

#[test]
fn what_a_server_repeats_of_the_credentials_is_not_shown() {
    for echo in [
        STREAM,
        "bad: user=pub&pass=hunter2%2F",
        "hunter2/ is wrong",
        "x\nhunter2%2F",
    ] {
        let mut publisher = publisher(true);
        let mut server = Server::greet(&mut publisher);
        server.status(&mut publisher, "error", "NetStream.Publish.Denied", echo);
        let (_, description, kind) = refusal(&mut publisher);
        assert!(!description.contains("hunter2"), "{description}");
        assert!(!description.contains('\n') && description.contains('…'));
        assert_eq!(kind, RefusalKind::Credentials);
        assert!(!format!("{publisher:?}").contains("hunter2"));
    }
    let mut publisher = publisher(true);
    let mut server = Server::greet(&mut publisher);
    let long = "é".repeat(40_000);
    server.status(&mut publisher, "error", "NetStream.Publish.Failed", &long);
    assert_eq!(refusal(&mut publisher).1.chars().count(), MAX_TEXT);
}

#[test]
fn a_secret_is_not_shown_in_part_or_on_another_line() {
    let stream = "robot?user=pub&pass=hunter2%09x";
    for description in ["hunter2%09x ".repeat(200), "hunter2\tx ".repeat(250)] {
        let mut publisher = publisher(true);
        publisher.params.stream = stream.into();
        let mut server = Server::greet(&mut publisher);
        server.status(&mut publisher, "error", "x", &description);
        let (_, description, _) = refusal(&mut publisher);
        assert!(!description.contains("hunter2"), "{description}");
    }
}

#[test]
fn a_server_that_asks_and_does_not_read_is_left() {
    let mut publisher = publisher(true);
    let mut server = Server::greet(&mut publisher);
    let mut pings = Vec::new();
    for _ in 0..MAX_ANSWERS / 8 {
        let ping = [0, 6, 1, 2, 3, 4];
        let id = message_type::USER_CONTROL;
        server.writer.message(&mut pings, 3, id, 0, 0, &[&ping]);
    }
    // One that reads may ask for ever.
    for piece in pings.chunks(4096) {
        publisher.input(piece).unwrap();
        written(&mut publisher);
    }
    let error = pings
        .chunks(4096)
        .find_map(|piece| publisher.input(piece).err())
        .unwrap();
    assert!(error.to_string().contains("does not read"), "{error}");
    assert!(publisher.output().len() < MAX_ANSWERS + 32);
}

#[test]
fn pings_and_bandwidth_are_answered() {
    let mut publisher = publisher(true);
    let mut server = Server::greet(&mut publisher);
    server.start(&mut publisher);
    server.read(&mut publisher);
    server.send(
        &mut publisher,
        message_type::USER_CONTROL,
        &[0, 6, 1, 2, 3, 4],
    );
    server.send(
        &mut publisher,
        message_type::SET_PEER_BANDWIDTH,
        &[0, 0, 1, 0, 2],
    );
    let answers: Vec<(u8, Vec<u8>)> = server
        .read(&mut publisher)
        .into_iter()
        .map(|message| (message.type_id, message.body))
        .collect();
    assert_eq!(
        answers[0],
        (message_type::USER_CONTROL, vec![0, 7, 1, 2, 3, 4])
    );
    assert_eq!(
        answers[1],
        (message_type::WINDOW_ACKNOWLEDGEMENT_SIZE, vec![0, 0, 1, 0])
    );
    server.send(&mut publisher, message_type::USER_CONTROL, &[0, 6]);
    server.send(
        &mut publisher,
        message_type::USER_CONTROL,
        &[0, 0, 0, 0, 0, 1],
    );
    server.send(&mut publisher, 99, b"unknown");
    assert!(server.read(&mut publisher).is_empty());
}

#[test]
fn received_bytes_are_acknowledged_when_the_window_is_full() {
    let mut publisher = publisher(true);
    let mut server = Server::greet(&mut publisher);
    server.send(
        &mut publisher,
        message_type::WINDOW_ACKNOWLEDGEMENT_SIZE,
        &5000u32.to_be_bytes(),
    );
    server.read(&mut publisher);
    server.send(&mut publisher, 99, &[0; 1000]);
    assert!(publisher.output().is_empty());
    server.send(&mut publisher, 99, &[0; 1500]);
    let sent = server.read(&mut publisher);
    assert_eq!(sent[0].type_id, message_type::ACKNOWLEDGEMENT);
    let sequence = u32::from_be_bytes(sent[0].body[..].try_into().unwrap());
    assert_eq!(u64::from(sequence), publisher.received_bytes);
}

#[test]
fn acknowledged_bytes_follow_the_server_across_the_wrap_of_32_bits() {
    let mut publisher = publisher(true);
    let mut server = Server::greet(&mut publisher);
    assert_eq!(publisher.acknowledged_bytes(), None);
    let mut acknowledge = |sequence: u32| {
        server.send(
            &mut publisher,
            message_type::ACKNOWLEDGEMENT,
            &sequence.to_be_bytes(),
        );
        publisher.acknowledged_bytes().unwrap()
    };
    assert_eq!(acknowledge(100_000), 100_000);
    assert_eq!(acknowledge(99_000), 100_000);
    assert_eq!(acknowledge(0x7000_0000), 0x7000_0000);
    assert_eq!(acknowledge(0xe000_0000), 0xe000_0000);
    assert_eq!(acknowledge(5), 0x1_0000_0005);
}

#[test]
fn answers_in_larger_chunks_and_broken_ones_are_read() {
    let mut publisher = publisher(true);
    let mut server = Server::greet(&mut publisher);
    let mut out = Vec::new();
    server.writer.set_chunk_size(&mut out, 4096);
    publisher.input(&out).unwrap();
    server.start(&mut publisher);
    assert_eq!(publisher.next_event(), Some(Event::Published));

    let mut broken = Publisher::new(publisher.params.clone(), &[]);
    let mut server = Server::greet(&mut broken);
    let mut out = Vec::new();
    server
        .writer
        .message(&mut out, 3, 20, 0, 0, &[b"\x00nonsense"]);
    assert!(broken.input(&out).is_err());
}

#[test]
fn media_of_any_time_and_size_arrives_whole() {
    let mut publisher = publisher(true);
    let mut server = Server::greet(&mut publisher);
    server.read(&mut publisher);
    let frame: Vec<u8> = (0..200_000).map(|n| n as u8).collect();
    for time in [0, 0xff_fffe, 0xff_ffff, 0x0200_0000, u32::MAX, 20] {
        publisher.video(time, &[&[0x17, 1, 0, 0, 0], &frame[..7], &[], &frame[7..]]);
        let sent = server.read(&mut publisher);
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].timestamp, time);
        assert_eq!(sent[0].body[5..], frame);
    }
}

#[test]
fn script_data_is_prefixed_once() {
    let mut publisher = publisher(true);
    let mut server = Server::greet(&mut publisher);
    server.read(&mut publisher);
    publisher.raw_data(0, &Metadata::default().body());
    let body = server.read(&mut publisher).remove(0).body;
    assert!(body.starts_with(b"\x02\0\x0d@setDataFrame\x02\0\x0aonMetaData"));
    publisher.raw_data(5, &body);
    assert_eq!(server.read(&mut publisher).remove(0).body, body);
    publisher.raw_data(5, b"\x02\0\x02on");
    assert_eq!(server.read(&mut publisher).remove(0).body, b"\x02\0\x02on");
}

#[test]
fn output_is_consumed_in_any_steps() {
    let mut publisher = publisher(true);
    publisher.input(&s0_s1_s2()).unwrap();
    let whole = publisher.output().to_vec();
    let mut seen: Vec<u8> = Vec::new();
    let mut noise = Noise(4);
    while !publisher.output().is_empty() {
        let count = (1 + noise.below(700)).min(publisher.output().len());
        seen.extend(&publisher.output()[..count]);
        publisher.consume(count);
    }
    assert_eq!(seen, whole);
    publisher.consume(10);
    assert!(publisher.output().is_empty());
}

#[test]
fn garbage_never_panics() {
    let mut noise = Noise(5);
    for round in 0..3000 {
        let mut publisher = publisher(round % 2 == 0);
        let mut server = Server::greet(&mut publisher);
        // A good conversation with some bytes changed, in odd pieces.
        let mut bytes = Vec::new();
        for n in 0..6 {
            let mut body = command(
                ["_result", "onStatus", "_error"][noise.below(3)],
                1 + n,
                &[],
            );
            Value::Null.encode(&mut body);
            status("error", "NetStream.Publish.Start", "x").encode(&mut body);
            let type_id = noise.below(21) as u8;
            server
                .writer
                .message(&mut bytes, 3, type_id, 0, 0, &[&body]);
        }
        for _ in 0..noise.below(12) {
            let at = noise.below(bytes.len());
            bytes[at] = noise.next() as u8;
        }
        let size = 1 + noise.below(200);
        for piece in bytes.chunks(size) {
            if publisher.input(piece).is_err() {
                break;
            }
            publisher.video(noise.next(), &[b"frame"]);
        }
        while publisher.next_event().is_some() {}
        publisher.unpublish();
    }
}
