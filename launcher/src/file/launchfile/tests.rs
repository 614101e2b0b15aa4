// SPDX-License-Identifier: MPL-2.0

use super::*;

fn parse(text: &str) -> Result<LaunchFile, Fault> {
    LaunchFile::parse(text, &mut |name| {
        let (text, secret) = match name {
            "W" => ("640", false),
            "FILE" => ("/tmp/a b\"c'd\\e.mkv", false),
            "CAMERA" => ("v4l2src device=/dev/video0 ! video/x-raw,width=640", false),
            "EMPTY" => ("", false),
            "KEY" => ("hunter2", true),
            "PHRASE" => ("hunter2 horse", true),
            "NUL" => ("a\0b", false),
            "BROKEN" => return Err("cannot read it".into()),
            _ => return Ok(None),
        };
        Ok(Some(Value {
            text: text.into(),
            secret,
        }))
    })
}

fn words(text: &str) -> Vec<String> {
    let file = parse(text).unwrap_or_else(|fault| panic!("{fault:?}"));
    file.words.into_iter().map(|word| word.text).collect()
}

fn launch(text: &str) -> String {
    let file = parse(text).unwrap_or_else(|fault| panic!("{fault:?}"));
    file.description(file.words.len())
}

fn fault(text: &str) -> (String, Fault) {
    let fault = parse(text).err().expect("a fault");
    (fault.place.expect("a place").to_string(), fault)
}

#[test]
fn lines_and_continuations_are_white_space() {
    assert_eq!(
        words("a !\\\n b c=1 ! \\  \n\td\r\n! e \\"),
        ["a", "!", "b", "c=1", "!", "d", "!", "e"]
    );
}

#[test]
fn a_comment_begins_a_word_and_ends_with_its_line() {
    assert_eq!(
        words("# first\na # \"second\n  #third \\\n! b=#y location=rtmp://x/#y '# no' \"a #b\""),
        ["a", "!", "b=#y", "location=rtmp://x/#y", "# no", "a #b"]
    );
}

#[test]
fn quotes_hold_words_together_and_are_taken_away() {
    assert_eq!(
        words(r#"'video/x-raw, width=1' x="a b" y='${W}' z=a\ b \! "q\"\\\x\$""#),
        [
            "video/x-raw, width=1",
            "x=a b",
            "y=${W}",
            "z=a b",
            "!",
            "q\"\\\\x$"
        ]
    );
    assert_eq!(
        launch("'video/x-raw, width=1' l=\"a b\""),
        "video/x-raw,\\ width=1 l=a\\ b"
    );
    assert_eq!(launch(r#"c=\"a\ b\""#), r#"c="a b""#);
}

#[test]
fn variables_are_replaced_in_words_and_in_double_quotes() {
    assert_eq!(
        words("w=${W} \"x ${W}\" ${NONE:-a b} n=${NONE:-a b} ${EMPTY:-e}"),
        ["w=640", "x 640", "a", "b", "n=a b", "e"]
    );
    assert_eq!(words("a=$ b$"), ["a=$", "b$"]);
}

#[test]
fn a_variable_that_is_a_whole_word_may_hold_several() {
    assert_eq!(
        words("${CAMERA} ! x"),
        [
            "v4l2src",
            "device=/dev/video0",
            "!",
            "video/x-raw,width=640",
            "!",
            "x"
        ]
    );
    assert_eq!(words("a ${EMPTY} b"), ["a", "b"]);
}

#[test]
fn a_default_is_read_like_the_file_and_may_hold_variables() {
    let text = "${NONE:-enc rate=${NO:-15}00 size=${W}\n  f=${FILE} \"a b\" !} x";
    assert_eq!(
        words(text),
        [
            "enc",
            "rate=1500",
            "size=640",
            "f=/tmp/a b\"c'd\\e.mkv",
            "a b",
            "!",
            "x"
        ]
    );
    let places: Vec<String> = parse(text)
        .unwrap()
        .words
        .iter()
        .map(|word| format!("{} {}", word.place, word.value_place))
        .collect();
    assert_eq!(
        places,
        [
            "1:9 1:9",
            "1:13 1:18",
            "1:30 1:35",
            "2:3 2:5",
            "2:13 2:13",
            "2:19 2:19",
            "2:22 2:22"
        ]
    );
    assert_eq!(
        words("topic=${NONE:-a/${NO:-${W}}} ${NONE:-${CAMERA}} \"${NONE:-x ${W}}\""),
        [
            "topic=a/640",
            "v4l2src",
            "device=/dev/video0",
            "!",
            "video/x-raw,width=640",
            "x 640"
        ]
    );
    assert_eq!(words("a ${W:-${NOPE}} b"), ["a", "640", "b"]);
    let file = parse("a ${NONE:-x=${KEY}} b").unwrap();
    assert_eq!(file.mask.apply("hunter2"), "***");
}

#[test]
fn a_value_within_a_word_reaches_gstreamer_literally() {
    assert_eq!(
        launch("location=${FILE} x"),
        r#"location=/tmp/a\ b\"c\'d\\e.mkv x"#
    );
    assert_eq!(launch("a=${EMPTY} b"), "a=\"\" b");
    assert_eq!(launch("a=\"\" b"), "a=\"\" b");
    assert_eq!(launch("a= b"), "a= b");
}

#[test]
fn words_know_their_places() {
    let file = parse("# é\nä ! x=${W} \\\n  yy=\"q\"z  ${W:-a}").unwrap();
    let places: Vec<String> = file
        .words
        .iter()
        .map(|word| format!("{} {}", word.place, word.value_place))
        .collect();
    assert_eq!(
        places,
        ["2:1 2:1", "2:3 2:3", "2:5 2:7", "3:3 3:7", "3:12 3:12"]
    );
}

#[test]
fn a_variable_without_a_value_is_named_with_place_and_remedy() {
    let (place, fault) = fault("a\n  b=${NOPE}");
    assert_eq!((place.as_str(), fault.code), ("2:5", exit::CONFIG));
    assert!(fault.text.contains("--set NOPE=…"), "{}", fault.text);
    assert!(fault.text.contains("${NOPE:-default}"), "{}", fault.text);
}

#[test]
fn the_remedy_for_a_missing_secret_is_not_the_command_line() {
    let (_, fault) = fault("b=${RTMP_PASS}");
    assert!(!fault.text.contains("--set"), "{}", fault.text);
    assert!(
        fault.text.contains("CREDENTIALS_DIRECTORY"),
        "{}",
        fault.text
    );
}

#[test]
fn faults_of_the_text_are_named_with_their_places() {
    for (text, at, part) in [
        ("a \"b", "1:3", "not closed"),
        ("a\n'b", "2:1", "not closed"),
        ("a ${W", "1:3", "without }"),
        ("a ${W:-${W}\nb", "1:3", "without }"),
        ("a ${W\n}", "1:3", "name"),
        ("a ${NONE:-b\n c=${NOPE}}", "2:4", "NOPE"),
        ("a ${NONE:-b\n \"c}", "2:2", "not closed"),
        ("a=$HOME/x", "1:3", "${HOME}"),
        ("a ${}", "1:3", "name"),
        ("a ${../x}", "1:3", "name"),
        ("a ${BROKEN}", "1:3", "cannot read it"),
        ("a\0", "1:2", "NUL"),
        ("a\n'b\0'", "2:3", "NUL"),
        ("a ${NONE:-b\0}", "1:12", "NUL"),
        ("a=${NUL}", "1:3", "NUL"),
        ("# only\n", "2:1", "no pipeline"),
    ] {
        let (place, fault) = fault(text);
        assert_eq!(place, at, "{text:?}");
        assert!(fault.text.contains(part), "{text:?}: {}", fault.text);
    }
}

#[test]
fn secrets_are_masked_whether_by_property_or_by_source() {
    let file = parse("a password=one x=${KEY}").unwrap();
    assert_eq!(file.mask.apply("one hunter2 two"), "*** *** two");
    let (_, refused) = fault("-x\"${KEY}\"");
    assert!(refused.text.starts_with("-x***:"), "{}", refused.text);
    // Forgotten quotes, or a space too many: it is a word, or several.
    let file = parse("a password= ${PHRASE}").unwrap();
    let words: Vec<_> = file.words.iter().map(|word| word.text.as_str()).collect();
    assert_eq!(words, ["a", "password=", "hunter2", "horse"]);
    assert_eq!(
        file.mask.apply("no element \"horse\""),
        "no element \"***\""
    );
}
