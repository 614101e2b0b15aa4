// SPDX-License-Identifier: MPL-2.0

//! Every mistake in a configuration is told with its place and remedy.

use super::*;

const FILE: &str = "/etc/x/bridge.toml";

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new(FILE), |_| None)
}

fn error(text: &str) -> String {
    match parse(text) {
        Ok(_) => panic!("accepted: {text}"),
        Err(err) => err,
    }
}

fn credentials(config: &Config) -> (Option<String>, Option<String>) {
    let (name, password) = (config.mqtt.credentials)().unwrap();
    (name, password.map(|password| password.expose().to_owned()))
}

#[test]
fn the_template_is_valid_and_its_commented_defaults_are_the_defaults() {
    let template = parse(TEMPLATE).unwrap();
    let nothing = parse("").unwrap();
    for config in [&template, &nothing] {
        assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(config.mqtt.broker.to_string(), "mqtt://127.0.0.1:1883");
        assert_eq!(
            config.directory.default_robot().unwrap().topic,
            "robot/stream"
        );
    }
    // Every commented setting, examples included, is one that is known.
    let uncommented: String = TEMPLATE
        .lines()
        .map(|line| line.strip_prefix("# ").unwrap_or(line))
        .filter(|line| line.starts_with('[') || line.split(' ').nth(1) == Some("="))
        .map(|line| format!("{line}\n"))
        .collect();
    let file: Result<File, _> = toml::from_str(
        &uncommented
            .replace(
                "\"$argon2id$v=19$m=19456,t=2,p=1$...\"",
                &format!("\"{SHA}\""),
            )
            .replace("sha256:...", SHA),
    );
    let file = file.unwrap_or_else(|err| panic!("{err}{uncommented}"));
    let seconds = [file.mqtt.keep_alive, file.mqtt.start_expiry].map(|time| time.as_secs());
    assert_eq!(seconds, [10, 30]);
    assert_eq!(file.mqtt.ack_timeout, Mqtt::default().ack_timeout);
    assert_eq!(file.failures.burst, FailureLimit::default().burst);
    assert_eq!(file.failures.window, FailureLimit::default().window);
    assert_eq!(file.users.len(), 4);
    assert_eq!(file.webhooks.len(), 3);
    let mediamtx = file.mediamtx;
    assert_eq!(mediamtx.lease, MediaMtxTable::default().lease);
    assert_eq!(mediamtx.read_starts, MediaMtxTable::default().read_starts);
}

const SHA: &str = "sha256:9S+9MrKzuG/4jvbEkGKChfSCrxXdyylUH5S89Saj9sc=";

#[test]
fn every_mistake_is_told_with_file_line_and_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    fs::write(&empty, "").unwrap();
    let empty = empty.display();
    let user = format!("[[user]]\nname = \"u\"\nrole = \"viewer\"\npassword = \"{SHA}\"\n");
    for (text, position, reason) in [
        ("listen = 'here'", "1:10:", "ADDRESS:PORT"),
        ("\nlisten = '0.0.0.0:80'", "2:10:", "add a [[user]]"),
        (
            "[tls]\nlisten = '0.0.0.0:443'\ncert-file = 'x'\nkey-file = 'x'",
            "2:10:",
            "add a [[user]]",
        ),
        ("[mqtt]\nbrocker = 'x'", "2:1:", "unknown field `brocker`"),
        ("[mqtt]\nbroker = 'h:1883'", "2:10:", "mqtt://"),
        ("[mqtt]\nkeep-alive = 1", "2:14:", "from 5 to 3600"),
        (
            "[mqtt]\npassword-file = '/nonexistent'",
            "2:17:",
            "cannot read secret file",
        ),
        ("[mqtt]\nca-file = 'ca.pem'", "2:11:", "mqtts://"),
        ("[robots]\ntopic = 'robots/x'", "2:9:", "{robot}"),
        (
            "[robots]\npath = 'live/{robot}'",
            "2:8:",
            "path without topic",
        ),
        ("[robots]\ndefault = 'r1'", "2:11:", "r1"),
        ("[[robot]]\nname = 'r 1'", "2:8:", "letters"),
        ("[[robot]]\nname = 'r1'", "2:8:", "has no topic"),
        (
            "[[robot]]\nname = 'r1'\ntopic = 'a/#'\npath = 'x'",
            "3:9:",
            "a/#",
        ),
        (
            "[[robot]]\nname = 'r1'\ntopic = 'a'\npath = '/x'",
            "4:8:",
            "live/stream",
        ),
        (
            "[watch]\nrtsp = 'rtsp://u:hunter2@h/{path}'",
            "2:8:",
            "credentials",
        ),
        ("trusted-proxies = ['10.0.0.0/33']", "1:19:", "10.0.0.0/8"),
        (
            "[tls]\ncert-file = '/nonexistent.pem'\nkey-file = 'x'",
            "2:13:",
            "/nonexistent.pem",
        ),
        ("[watch]\nmpeg = 'x'", "2:1:", "unknown field"),
        ("[mediamtx]\nlease = 5", "2:9:", "from 10 to 3600"),
        ("[mediamtx]\napi = 'hunter2'", "2:7:", "http"),
        (
            "[mediamtx]\napi = 'http://h'\napi-user = 'x'",
            "2:7:",
            "api-password-file",
        ),
        ("[share]\nkey-file = '/dev/null'", "2:12:", "regular file"),
        (&format!("[share]\nkey-file = '{empty}'"), "2:12:", "empty"),
        ("[[webhook]]\nurl = 'ftp://u:hunter2@h'", "2:7:", "http"),
        (
            "[[webhook]]\nurl = 'http://h'\nevents = ['dance']",
            "3:11:",
            "opened",
        ),
        (
            "[[webhook]]\nurl = 'http://h'\nrobots = ['r9']",
            "3:10:",
            "r9",
        ),
        ("[failures]\nburst = 0", "2:9:", "at least 1"),
        ("[[user]]\nname = 'u'\nrole = 'boss'", "3:8:", "viewer"),
        (
            "[[user]]\nname = 'u'\nrole = 'viewer'",
            "2:8:",
            "neither password nor token",
        ),
        (
            "[[user]]\nname = 'u'\nrole = 'viewer'\npassword = 'hunter2'",
            "4:12:",
            "hash-password",
        ),
        (
            "[[user]]\nname = 'u'\nrole = 'viewer'\npassword = 1234567",
            "4:12:",
            "string",
        ),
        (&format!("{user}robots = ['r9']"), "5:10:", "r9"),
        (&user.replace("viewer", "robot"), "2:8:", "robots = [\"u\"]"),
        (&format!("{user}{user}"), "6:8:", "twice"),
        ("listen = ", "1:", ""),
    ] {
        let error = error(text);
        assert!(
            error.starts_with(&format!("{FILE}:{position}")),
            "{error}: {text}"
        );
        assert!(error.contains(reason), "{error} names {reason}");
        assert!(
            !error.contains("hunter2") && !error.contains("1234567"),
            "{error}"
        );
    }
}

/// Fuzzing found the tab: a role that nobody knows was quoted as it stood.
#[test]
fn a_mistake_is_told_on_one_line() {
    for text in [
        "[[user]]\nname = 'a'\nrole = \"v\\t\"",
        "\"a\\nb\" = 1",
        "[mqtt]\n\"\\u001b[2J\" = 1",
        "listen = \"\\r\"",
        "[robots]\ntopic = \"a\\nb\"",
    ] {
        let error = error(text);
        assert!(!error.chars().any(char::is_control), "{error:?}");
    }
}

#[test]
fn a_missing_file_is_told_with_the_remedy() {
    let Err(err) = Config::load(Path::new("/nonexistent/x.toml")) else {
        panic!("read a file that is not there");
    };
    assert!(
        err.contains("/nonexistent/x.toml") && err.contains("--print-config-template"),
        "{err}"
    );
}

#[test]
fn the_password_comes_from_the_environment_the_file_or_the_url() {
    let url = "[mqtt]\nbroker = 'mqtt://u:inurl@h'";
    let pair = |name: &str, password: &str| (Some(name.to_owned()), Some(password.to_owned()));
    assert_eq!(credentials(&parse(url).unwrap()), pair("u", "inurl"));
    let variable = |name: &str| (name == PASSWORD_VARIABLE).then(|| "inenv".to_owned());
    let config = Config::parse(url, Path::new(FILE), variable).unwrap();
    assert_eq!(credentials(&config), pair("u", "inenv"));

    let folder = env::temp_dir().join(format!("droidrelay-bridge-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("secret"), "infile\n").unwrap();
    let text = "[mqtt]\nusername = 'b'\npassword-file = 'secret'";
    let config = Config::parse(text, &folder.join("bridge.toml"), |_| None).unwrap();
    assert_eq!(credentials(&config), pair("b", "infile"));
    fs::write(folder.join("secret"), "rotated\n").unwrap();
    assert_eq!(credentials(&config), pair("b", "rotated"));
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn only_with_users_it_listens_beyond_loopback() {
    let user = format!("[[user]]\nname = 'u'\nrole = 'admin'\ntoken = '{SHA}'");
    assert!(parse(&format!("listen = '[::]:80'\n{user}")).is_ok());
    assert!(parse("listen = '[::1]:0'").is_ok());
    assert!(error("listen = '[::]:80'").contains("credential"));
}

#[test]
fn the_only_listed_robot_is_the_default_and_a_template_needs_one_named() {
    let one = "[[robot]]\nname = 'r1'\ntopic = 'a'\npath = 'x'\n";
    assert_eq!(
        parse(one).unwrap().directory.default_robot().unwrap().name,
        "r1"
    );
    let template = "[robots]\ntopic = 'robots/{robot}/stream'\n";
    assert!(parse(template).unwrap().directory.default_robot().is_none());
    let named = format!("{template}default = 'r7'");
    let robot = parse(&named).unwrap().directory.default_robot().unwrap();
    assert_eq!(
        (robot.topic.as_str(), robot.path.as_str()),
        ("robots/r7/stream", "robots/r7")
    );
}

#[test]
fn a_robot_whose_commands_would_be_what_another_one_says_is_refused() {
    let robot = |name: &str, topic: &str| {
        format!("[[robot]]\nname = '{name}'\ntopic = '{topic}'\npath = '{name}'\n")
    };
    for other in ["a", "a/state", "a/availability", "a/wanted", "a/shares"] {
        let (one, two) = (robot("r1", "a"), robot("r2", other));
        for text in [format!("{one}{two}"), format!("{two}{one}")] {
            assert!(error(&text).contains("make them differ"), "{other}");
        }
    }
    assert!(error(&robot("r1", "$SYS/a")).contains("begins with $"));
    assert!(error("[robots]\ntopic = '$share/{robot}/x'").contains("begins with $"));
}

#[test]
fn a_proxy_is_named_by_its_address_or_its_network() {
    let config = parse("trusted-proxies = ['127.0.0.1', '10.0.0.0/8', 'fd00::1']").unwrap();
    let proxies: Vec<_> = config.proxies.iter().map(ToString::to_string).collect();
    assert_eq!(proxies, ["127.0.0.1/32", "10.0.0.0/8", "fd00::1/128"]);
}
