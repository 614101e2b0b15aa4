// SPDX-License-Identifier: MPL-2.0

//! A valve's topics, and the name of its session at the broker: another one for each machine, topic
//! and element, the same at each start.

use std::{
    fs, io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;

use droidrelay_wire::words::topics::{check_distinct, check_topic};

/// Sessions of one machine that would have one name.
const MAX_TWINS: u32 = 64;
/// Characters of the topic that are shown in the name.
const SHOWN: usize = 24;

/// The client id of a valve that was given none. Machine, topic and element go into a hash, so
/// that no two fold into one; the topic is shown for those who read the broker's log.
pub fn client_id(topic: &str, element: &str) -> String {
    named(&this_machine(), topic, element)
}

fn this_machine() -> String {
    machine(Path::new("/")).unwrap_or_else(|| glib::host_name().to_string())
}

fn named(machine: &str, topic: &str, element: &str) -> String {
    let shown = |c: char| match c.is_ascii_alphanumeric() {
        true => c,
        false => '-',
    };
    let topic_shown: String = topic.chars().take(SHOWN).map(shown).collect();
    let hash = hash(&format!("{machine}\0{topic}\0{element}"));
    format!("droidrelay-{topic_shown}-{hash}")
}

/// Half of SHA-256 suffices to tell apart, and tells nothing of what went in.
fn hash(text: &str) -> String {
    let sum = glib::compute_checksum_for_string(glib::ChecksumType::Sha256, text);
    sum.map_or_else(String::new, |sum| sum.chars().take(16).collect())
}

/// What tells this machine from another one with a copy of its disk: a serial number, or the
/// address of a network adapter that is built in. Else what tells it from other installations.
fn machine(root: &Path) -> Option<String> {
    let read = |path: &Path| {
        let text = fs::read_to_string(path).ok()?;
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        (!text.is_empty()).then(|| text.to_owned())
    };
    let serial = || {
        let serial = read(&root.join("sys/firmware/devicetree/base/serial-number"))?;
        // Boards without one tell zeros.
        serial.chars().any(|c| c != '0').then_some(serial)
    };
    let adapter = || {
        let found = fs::read_dir(root.join("sys/class/net")).ok()?;
        let address = |folder: &Path| {
            let device = fs::canonicalize(folder.join("device")).ok()?;
            let path = device.to_str()?;
            // One that can be plugged in may be in another machine tomorrow; one that has not come
            // with its address may have another one.
            let is_fixed = !path.contains("/usb") && !path.contains("/virtual/");
            let is_own = read(&folder.join("addr_assign_type")).as_deref() == Some("0");
            let address = read(&folder.join("address")).filter(|_| is_fixed && is_own)?;
            Some((path.to_owned(), address))
        };
        let mut fixed: Vec<_> = found
            .filter_map(|entry| address(&entry.ok()?.path()))
            .collect();
        fixed.sort();
        fixed.into_iter().next().map(|(_, address)| address)
    };
    let installation = || {
        let read = |path: &str| read(&root.join(path));
        read("etc/machine-id").or_else(|| read("var/lib/dbus/machine-id"))
    };
    serial().or_else(adapter).or_else(installation)
}

/// A name that one valve of this machine has at a time.
struct Claim {
    name: String,
    /// The kernel gives the name to one socket at a time, and takes it back with the process.
    socket: Mutex<Option<UnixListener>>,
}

impl Claim {
    fn of(what: &str) -> Self {
        Claim {
            name: format!("droidrelay/{}", hash(what)),
            socket: Mutex::default(),
        }
    }

    /// Takes it, where no other valve has it; whether it is ours now.
    fn take(&self) -> bool {
        let mut socket = self.socket.lock();
        if socket.is_some() {
            return true;
        }
        let claimed = SocketAddr::from_abstract_name(&self.name)
            .and_then(|name| UnixListener::bind_addr(&name));
        match claimed {
            Ok(claimed) => *socket = Some(claimed),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return false,
            // Where the kernel has no such names there is nobody to be told apart from.
            Err(_) => {}
        }
        true
    }
}

/// A valve's client id, and its right to it among the valves of this machine.
pub struct ClientId {
    id: String,
    broker: String,
    own: Claim,
    /// Of the broker's user: there are brokers that take the user's name as client id.
    login: Option<Claim>,
    /// Another client has taken the session.
    was_taken: AtomicBool,
}

impl ClientId {
    /// `id`, or where a pipeline with the same names has that one, another one made of it; the one
    /// that was made of it `before`, if it is free: what the broker keeps is kept under that name.
    pub fn claim(id: &str, before: Option<&str>, broker: &str, user: Option<&str>) -> Self {
        let all = (1..=MAX_TWINS).map(|twin| match twin {
            1 => id.to_owned(),
            twin => format!("{id}-{twin}"),
        });
        let mut all: Vec<String> = all.collect();
        all.sort_by_key(|id| Some(id.as_str()) != before);
        let claimed = all.into_iter().find_map(|id| {
            let own = Claim::of(&id);
            own.take().then_some((id, own))
        });
        // Where all are taken, it waits for one.
        let (id, own) = claimed.unwrap_or_else(|| (id.to_owned(), Claim::of(id)));
        Self::with(id, own, broker, user)
    }

    /// An id that was given: another valve that has it is waited for.
    pub fn fixed(id: &str, broker: &str, user: Option<&str>) -> Self {
        let own = Claim::of(&format!("{}\0{broker}\0{id}", this_machine()));
        own.take();
        Self::with(id.to_owned(), own, broker, user)
    }

    fn with(id: String, own: Claim, broker: &str, user: Option<&str>) -> Self {
        let login = user.map(|user| {
            let machine = this_machine();
            Claim::of(&format!("{machine}\0{broker}\0user\0{user}"))
        });
        if let Some(login) = &login {
            login.take();
        }
        ClientId {
            id,
            broker: broker.to_owned(),
            own,
            login,
            was_taken: AtomicBool::new(false),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.id
    }

    /// Another client has taken the session.
    pub fn taken(&self) {
        self.was_taken.store(true, Ordering::Relaxed);
    }

    /// Whether this valve may connect, which would throw out another one of this machine. The error
    /// names the remedy.
    pub fn check(&self) -> Result<(), String> {
        if !self.own.take() {
            return Err(format!(
                "another valve on this machine has the client id {:?} at {}, which it would lose: set client-id to \
                 another one in one of them, or in neither",
                self.id, self.broker
            ));
        }
        let login = self.login.as_ref();
        if self.was_taken.load(Ordering::Relaxed) && !login.is_none_or(Claim::take) {
            return Err(format!(
                "another valve on this machine has the same user at {}, which takes the user name as client id: give \
                 each a user of its own (droidrelay-bridge robot add --valve)",
                self.broker
            ));
        }
        Ok(())
    }
}

/// Topics of one valve.
#[derive(Debug, Clone)]
pub struct Topics {
    pub command: String,
    pub state: String,
    pub availability: String,
}

impl Topics {
    /// Says what is wrong with one of them, or with all together.
    pub fn check(&self) -> Result<(), String> {
        let named = [
            ("topic", &*self.command),
            ("state-topic", &*self.state),
            ("availability-topic", &*self.availability),
        ];
        for (name, topic) in named {
            check_topic(topic).map_err(|error| format!("{name}: {error}"))?;
        }
        check_distinct(&named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::fs::symlink, path::PathBuf};

    struct Root(PathBuf);

    impl Root {
        fn new(name: &str) -> Self {
            let root =
                std::env::temp_dir().join(format!("droidrelay-{name}-{}", std::process::id()));
            fs::create_dir_all(&root).unwrap();
            Root(root)
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        /// A network adapter at `device`.
        fn adapter(&self, name: &str, device: &str, address: &str, assigned: &str) {
            let device = self.0.join("sys/devices").join(device);
            fs::create_dir_all(&device).unwrap();
            let folder = format!("sys/class/net/{name}");
            self.write(&format!("{folder}/address"), address);
            self.write(&format!("{folder}/addr_assign_type"), assigned);
            symlink(device, self.0.join(folder).join("device")).unwrap();
        }

        fn machine(&self) -> Option<String> {
            machine(&self.0)
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn copies_of_one_disk_are_told_apart_by_what_is_built_in() {
        let root = Root::new("machine");
        assert_eq!(root.machine(), None);
        root.write("etc/machine-id", "0123456789abcdef\n");
        assert_eq!(root.machine().as_deref(), Some("0123456789abcdef"));
        root.adapter("usb0", "pci0/usb1/net", "aa:bb", "0\n");
        root.adapter("wlan0", "pci0/random", "cc:dd", "3\n");
        assert_eq!(root.machine().as_deref(), Some("0123456789abcdef"));
        root.adapter("eth1", "pci0/0000:02", "11:22", "0\n");
        root.adapter("eth0", "pci0/0000:01", "33:44", "0\n");
        assert_eq!(root.machine().as_deref(), Some("33:44"), "the first slot");
        root.write("sys/firmware/devicetree/base/serial-number", "0000\0");
        assert_eq!(root.machine().as_deref(), Some("33:44"), "no serial number");
        root.write(
            "sys/firmware/devicetree/base/serial-number",
            "10000000abcd\0",
        );
        assert_eq!(root.machine().as_deref(), Some("10000000abcd"));
    }

    #[test]
    fn no_two_names_fold_into_one_and_each_stays_the_same() {
        let all = [
            ("m", "a/b", "c"),
            ("m", "a-b", "c"),
            ("m", "a", "b-c"),
            ("m", "a/b", "d"),
            ("n", "a/b", "c"),
        ];
        let ids: Vec<_> = all.map(|(m, t, e)| named(m, t, e)).into();
        for (n, id) in ids.iter().enumerate() {
            assert!(!ids[..n].contains(id), "{id}");
            assert!(id.is_ascii() && id.len() < 64, "{id}");
        }
        // Written down: another one would be another session, and another device.
        assert_eq!(ids[0], "droidrelay-a-b-fe58e4651e4ce1a3");
        assert_eq!(client_id("a", "b"), client_id("a", "b"));
    }

    #[test]
    fn two_at_a_time_have_two_ids_and_one_after_the_other_the_same() {
        let id = format!("test-{}", std::process::id());
        let twin = format!("{id}-2");
        let claim = |before| ClientId::claim(&id, before, "mqtt://h", None);
        let first = claim(None);
        let second = claim(Some("of another topic"));
        assert_eq!(first.as_str(), id);
        assert_eq!(second.as_str(), twin);
        drop(first);
        assert_eq!(claim(Some(&twin)).as_str(), id, "it is not free");
        drop(second);
        assert_eq!(claim(Some(&twin)).as_str(), twin);
        assert_eq!(claim(None).as_str(), id);
    }

    #[test]
    fn an_id_that_was_given_is_for_one_valve_at_a_time_at_each_broker() {
        let id = format!("given-{}", std::process::id());
        let fixed = |broker| ClientId::fixed(&id, broker, None);
        let (first, second, other) = (fixed("mqtt://h"), fixed("mqtt://h"), fixed("mqtt://i"));
        assert_eq!((first.as_str(), second.as_str()), (&id[..], &id[..]));
        assert_eq!(first.check(), Ok(()));
        assert_eq!(other.check(), Ok(()));
        let error = second.check().unwrap_err();
        assert!(
            error.contains(&id) && error.contains("set client-id"),
            "{error}"
        );
        drop(first);
        assert_eq!(second.check(), Ok(()));
    }

    #[test]
    fn where_the_user_names_the_session_one_of_two_valves_goes_on() {
        let id = format!("user-{}", std::process::id());
        let claim = || ClientId::claim(&id, None, "mqtt://h", Some("robot1"));
        let (first, second) = (claim(), claim());
        // Most brokers tell them apart.
        assert_eq!((first.check(), second.check()), (Ok(()), Ok(())));
        first.taken();
        second.taken();
        assert_eq!(first.check(), Ok(()));
        let error = second.check().unwrap_err();
        assert!(error.contains("a user of its own"), "{error}");
        drop(first);
        assert_eq!(second.check(), Ok(()));
    }
}
