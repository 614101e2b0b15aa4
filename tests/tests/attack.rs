// SPDX-License-Identifier: MPL-2.0

//! The bridge under attack, in a network of the test's own: many connections that say nothing,
//! many wrong passwords, and a flood of them from many networks. Its owner and the media server notice
//! none of it.

use std::{
    fmt::Write as _,
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use droidrelay_testkit::{
    artifacts::artifact,
    certs::{Login, write_private},
    journal::DEADLINE,
    net::{
        http,
        netns::{Network, isolated},
        proxy::{connect_from, raise_file_limit},
    },
    process::{Process, poll, program_of},
};
use tempfile::TempDir;

const HOST: &str = "192.0.2.1";
const OWNER: [u8; 4] = [192, 0, 2, 2];
const ATTACKERS: u8 = 50;
const CONNECTIONS: usize = 5000;
const FILES: &str = "--nofile=1024:2048";
/// For the owner's login.
const AT_ONCE: Duration = Duration::from_millis(100);

/// Gives the network a device with the host's, the owner's and the attackers' addresses.
fn connect(network: &Network) {
    network
        .configure("ip", "link add lan type veth peer name far")
        .expect("a device");
    for device in ["lan", "far"] {
        let up = format!("link set {device} up");
        network.configure("ip", &up).unwrap();
    }
    let attackers = (0..ATTACKERS).map(|number| attacker(number).to_string());
    let others = [HOST.to_owned(), IpAddr::from(OWNER).to_string()];
    for address in others.into_iter().chain(attackers) {
        network
            .configure("ip", &format!("address add {address}/24 dev lan"))
            .unwrap();
    }
}

fn attacker(number: u8) -> IpAddr {
    [192, 0, 2, 100 + number].into()
}

struct Attacked {
    process: Process,
    /// For everybody.
    public: SocketAddr,
    /// For MediaMTX.
    own: SocketAddr,
    owner: Login,
    media: Login,
    _folder: TempDir,
}

impl Attacked {
    /// A bridge without a broker: what is asked of it here needs none.
    fn start() -> Self {
        Self::start_at(HOST, Login::hash)
    }

    /// At this address, with an owner whose password is kept as `hash` makes it.
    fn start_at(host: &str, hash: impl Fn(&Login) -> String) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("attacked-")
            .tempdir()
            .unwrap();
        let [owner, media] = ["owner", "mediamtx"].map(|name| Login::generate(name).unwrap());
        let mut config = format!(
            "listen = \"{host}:0\"\n[mqtt]\nbroker = \"mqtt://127.0.0.1:9\"\n\
             [mediamtx]\nlisten = \"127.0.0.1:0\"\n[failures]\nwindow = 3600\n"
        );
        for (login, role, hash) in [
            (&owner, "admin", hash(&owner)),
            (&media, "mediamtx", media.hash()),
        ] {
            write!(
                config,
                "[[user]]\nname = \"{}\"\nrole = \"{role}\"\npassword = \"{}\"\n",
                login.user, hash
            )
            .unwrap();
        }
        let config = write_private(folder.path(), "bridge.toml", &config).unwrap();
        // Fewer files than the attackers have: without limits of its own it would run out of them.
        let mut command = Command::new(program_of("prlimit", "util-linux").unwrap());
        command
            .arg(FILES)
            .arg(artifact("droidrelay-bridge").unwrap())
            .arg("--config")
            .arg(config);
        let process = Process::spawn("droidrelay-bridge", &mut command).unwrap();
        let doors = poll(DEADLINE, || {
            let log = process.log().all();
            let doors = log.iter().filter_map(|line| {
                let (_, address) = line.split_once("listening on http://")?;
                address.trim().parse().ok()
            });
            let doors: Vec<SocketAddr> = doors.collect();
            <[SocketAddr; 2]>::try_from(doors).ok()
        });
        let Some([public, own]) = doors else {
            panic!("{}", process.text());
        };
        Attacked {
            process,
            public,
            own,
            owner,
            media,
            _folder: folder,
        }
    }

    /// Sends a request from this address; the answer's status.
    fn ask(&self, source: IpAddr, authorization: &str) -> u16 {
        let mut stream = connect_from(source, self.public).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        write!(
            stream,
            "GET /robots HTTP/1.1\r\nhost: h\r\nauthorization: {authorization}\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
        status.unwrap_or_else(|| panic!("{answer:?}\n{}", self.process.text()))
    }

    /// How long the owner's login takes: as often as not, at most. Others use this machine too.
    fn login(&self) -> Duration {
        self.login_from(OWNER.into())
    }

    fn login_from(&self, source: IpAddr) -> Duration {
        let mut times: Vec<Duration> = (0..21)
            .map(|_| {
                let began = Instant::now();
                assert_eq!(self.ask(source, &self.owner.basic()), 200);
                began.elapsed()
            })
            .collect();
        times.sort_unstable();
        times[times.len() / 2]
    }

    /// The media server's question is answered.
    fn answers_the_media_server(&self) {
        let answer = http::request(self.own, "POST", "/mediamtx/auth", &self.media.basic());
        let answer = answer.unwrap_or_else(|err| panic!("{err:#}\n{}", self.process.text()));
        // Asked without a question.
        assert_eq!(answer.status, 400, "{}", answer.body);
    }
}

#[test]
fn five_thousand_connections_that_say_nothing_keep_neither_owner_nor_media_server_out() {
    isolated(|network| {
        connect(network);
        let attacked = Attacked::start();
        raise_file_limit().unwrap();
        let mut held: Vec<TcpStream> = Vec::with_capacity(CONNECTIONS);
        for number in 0..CONNECTIONS {
            let source = attacker((number % usize::from(ATTACKERS)) as u8);
            // Some say a little.
            let mut stream = connect_from(source, attacked.public).unwrap();
            if number % 3 == 0 {
                let _ = stream.write_all(b"GET /robots HTTP/1.1\r\nhost: ");
            }
            held.push(stream);
        }
        let took = attacked.login();
        println!("the owner's login beside {CONNECTIONS} connections: {took:?}");
        assert!(took < AT_ONCE, "{took:?}\n{}", attacked.process.text());
        attacked.answers_the_media_server();
        drop(held);
        // One address that holds all it can keeps nobody else behind it out either.
        let mut held: Vec<TcpStream> = Vec::new();
        for _ in 0..1000 {
            held.push(connect_from(OWNER.into(), attacked.public).unwrap());
        }
        let took = attacked.login();
        assert!(took < AT_ONCE, "{took:?}\n{}", attacked.process.text());
    });
}

#[test]
fn wrong_passwords_shut_out_who_sends_them_and_neither_owner_nor_media_server() {
    isolated(|network| {
        connect(network);
        let attacked = Attacked::start();
        // The owner's own address is used by others as well.
        assert_eq!(attacked.ask(OWNER.into(), &attacked.owner.basic()), 200);
        let sources = (0..ATTACKERS).map(attacker).chain([OWNER.into()]);
        let mut limited = 0;
        for source in sources {
            for number in 0..12 {
                let guess = Login {
                    user: "owner".into(),
                    password: number.to_string(),
                };
                let status = attacked.ask(source, &guess.basic());
                assert!(matches!(status, 401 | 429), "{status}");
                limited += usize::from(status == 429);
            }
        }
        assert!(limited >= usize::from(ATTACKERS), "{limited}");
        let took = attacked.login();
        assert!(took < AT_ONCE, "{took:?}");
        attacked.answers_the_media_server();
        // Guessing stays limited: from where it did not come before, the right one waits too.
        assert_eq!(attacked.ask(attacker(0), &attacked.owner.basic()), 429);
    });
}

/// An address in a network (/48) of its own.
fn elsewhere(network: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, network, 0, 0, 0, 0, 1)
}

/// As the bridge keeps a person's password: it takes its time to check.
fn slow_hash(login: &Login) -> String {
    let mut program = Command::new(artifact("droidrelay-bridge").unwrap());
    let mut hashing = program
        .arg("hash-password")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(hashing.stdin.take().unwrap(), "{}", login.password).unwrap();
    let output = hashing.wait_with_output().unwrap();
    let hash = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    assert!(hash.starts_with("$argon2id$"), "{hash}");
    hash
}

#[test]
fn a_flood_of_logins_from_many_networks_makes_no_owner_wait() {
    const NETWORKS: u16 = 64;
    const HERE: u16 = 0xffff;
    const OWNERS: u16 = 0xfffe;
    /// For each thread: more than there is time for.
    const TRIES: u16 = 2000;
    isolated(|network| {
        connect(network);
        for number in (1..=NETWORKS).chain([HERE, OWNERS]) {
            let address = elsewhere(number);
            network
                .configure("ip", &format!("address add {address}/128 dev lan nodad"))
                .unwrap();
        }
        let attacked = Attacked::start_at(&format!("[{}]", elsewhere(HERE)), slow_hash);
        let owners = elsewhere(OWNERS).into();
        assert_eq!(attacked.ask(owners, &attacked.owner.basic()), 200);
        let goes_on = AtomicBool::new(true);
        let took = thread::scope(|scope| {
            for begin in 0..4 {
                let (attacked, goes_on) = (&attacked, &goes_on);
                scope.spawn(move || {
                    let numbers = (begin..TRIES).step_by(4);
                    for number in numbers.take_while(|_| goes_on.load(Ordering::Relaxed)) {
                        let guess = Login {
                            user: ["owner", "nobody"][usize::from(number / 4 % 2)].into(),
                            password: number.to_string(),
                        };
                        let source = elsewhere(1 + number % NETWORKS).into();
                        let status = attacked.ask(source, &guess.basic());
                        assert!(matches!(status, 401 | 429), "{status}");
                    }
                });
            }
            let took = attacked.login_from(owners);
            attacked.answers_the_media_server();
            goes_on.store(false, Ordering::Relaxed);
            took
        });
        println!("the owner's login in a flood of others: {took:?}");
        assert!(took < AT_ONCE, "{took:?}\n{}", attacked.process.text());
    });
}
