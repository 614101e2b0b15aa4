// SPDX-License-Identifier: MPL-2.0

//! A robot's service: the doctor looks with the environment, the credentials and the rights that
//! systemd gives to `droidrelay@NAME`, in a process of its own.

use std::{
    collections::BTreeMap,
    env,
    ffi::{CString, OsStr, OsString},
    fs, io,
    os::unix::{fs as unix_fs, fs::DirBuilderExt, fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use droidrelay_wire::exit::{self, Failure};

use super::report::{Report, failed, forbidden, missing};

/// Where launch files, environments and passwords of the services are.
const FOLDER: &str = "/etc/droidrelay";
/// The unit's credentials. Where a file is missing, systemd gives one that is empty.
const CREDENTIALS: [&str; 2] = ["mqtt.pass", "rtmp.pass"];
/// What systemd gives to services of the system.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What systemd says of a unit; where there is none that answers, what stands in ours.
struct Unit {
    user: String,
    group: String,
    more_groups: Vec<String>,
    environment: BTreeMap<String, String>,
    /// What it says of itself while it runs.
    status: String,
}

/// The service that `given` names, where it names one and no file.
pub fn name_of(given: &Path) -> Option<&str> {
    let name = given.to_str()?;
    let is_name = !name.is_empty()
        && !name.ends_with(".launch")
        && name
            .chars()
            .all(|char| char.is_ascii_alphanumeric() || ":-_.\\@".contains(char));
    (is_name && !given.exists()).then(|| {
        let name = name.strip_prefix("droidrelay@").unwrap_or(name);
        name.strip_suffix(".service").unwrap_or(name)
    })
}

/// Looks at the service `name` as it is run; `options` are those of the doctor's command line.
/// The exit code.
pub fn examine(name: &str, options: &[OsString], report: &mut Report) -> u8 {
    let looked = look(name, options, report);
    report.check(looked).unwrap_or(report.code)
}

fn look(name: &str, options: &[OsString], report: &Report) -> Result<u8, Failure> {
    let what = format!("service droidrelay@{name}");
    let folder =
        env::var_os("CONFIGURATION_DIRECTORY").map_or_else(|| FOLDER.into(), PathBuf::from);
    let file = folder.join(format!("{name}.launch"));
    match fs::metadata(&file) {
        Ok(_) => {}
        Err(err) if err.kind() == io::ErrorKind::PermissionDenied => {
            let saw = format!("{}: {err}", file.display());
            return Err(forbidden(what, saw, "run the doctor as root: sudo"));
        }
        Err(err) => {
            let saw = format!("{}: {err}", file.display());
            let remedy = "name a launch file, or a service whose launch file is there";
            return Err(failed(exit::NO_INPUT, what, saw, remedy));
        }
    }
    let unit = Unit::read(name);
    let credentials = Credentials::make(&folder).map_err(|err| {
        missing(
            &what,
            format_args!("no folder for its credentials: {err}"),
            "",
        )
    })?;
    let mut environment = unit.environment.clone();
    let written = folder.join(format!("{name}.env"));
    match fs::read_to_string(&written) {
        Ok(text) => environment.extend(parse_environment(&text)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => {}
        Err(err) => {
            let saw = format!("cannot read {}: {err}", written.display());
            return Err(failed(
                exit::CONFIG,
                what,
                saw,
                "run the doctor as root: sudo",
            ));
        }
    }
    let place = format!("/run/credentials/droidrelay@{name}.service");
    for value in environment.values_mut() {
        *value = value.replace(&place, &credentials.0.display().to_string());
    }
    let mut command = Command::new("/proc/self/exe");
    command.arg("doctor").arg(&file);
    // Of its options those that have a part in what the launch file says.
    let run = environment.get("DROIDRELAY_OPTIONS");
    let mut words = run.iter().flat_map(|options| options.split_whitespace());
    while let Some(word) = words.next() {
        match word.strip_prefix("--set") {
            Some("") => command.arg("--set").args(words.next()),
            Some(_) => command.arg(word),
            None => continue,
        };
    }
    command
        .args(options)
        .env_clear()
        .env("PATH", PATH)
        .envs(env::var_os("LANG").map(|lang| ("LANG", lang)))
        .envs(&environment)
        .env("CREDENTIALS_DIRECTORY", &credentials.0);
    if rustix::process::geteuid().is_root() {
        let ids = Ids::of(&unit).map_err(|saw| {
            let remedy = "install the package droidrelay, or mend User= and Group= of the unit";
            missing(&what, saw, remedy)
        })?;
        credentials
            .give_to(&ids)
            .map_err(|err| missing(&what, format_args!("its credentials: {err}"), ""))?;
        let saw = format!("looked at as {}, with its environment", unit.user);
        report.ok(&what, saw);
        ids.take_on(&mut command);
    } else {
        let saw = "looked at with its environment, but with the rights of whoever runs this";
        report.note(
            &what,
            saw,
            "as root the doctor takes on the service's: sudo",
        );
    }
    if !unit.status.is_empty() {
        report.note(
            &what,
            format_args!("it runs, and says: {}", unit.status),
            "",
        );
    }
    let status = command
        .status()
        .map_err(|err| missing(&what, format_args!("cannot be looked at: {err}"), ""))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.unwrap_or(exit::SOFTWARE))
}

impl Unit {
    fn read(name: &str) -> Self {
        let mut unit = Unit {
            user: "droidrelay".into(),
            group: "droidrelay".into(),
            more_groups: ["video", "render", "audio"].map(Into::into).into(),
            environment: BTreeMap::from(
                [
                    ("HOME", "/var/lib/droidrelay".to_owned()),
                    ("XDG_CACHE_HOME", "/var/cache/droidrelay".to_owned()),
                ]
                .map(|(name, value)| (name.to_owned(), value)),
            ),
            status: String::new(),
        };
        for (variable, credential) in [
            ("MQTT_PASSWORD_FILE", CREDENTIALS[0]),
            ("RTMP_PASSWORD_FILE", CREDENTIALS[1]),
        ] {
            let file = format!("/run/credentials/droidrelay@{name}.service/{credential}");
            unit.environment.insert(variable.into(), file);
        }
        let shown = Command::new("systemctl")
            .arg("show")
            .arg(format!("droidrelay@{name}.service"))
            .arg("--property=LoadState,User,Group,SupplementaryGroups,Environment,StatusText")
            .output();
        if let Ok(shown) = shown
            && shown.status.success()
        {
            unit.update(&String::from_utf8_lossy(&shown.stdout));
        }
        unit
    }

    /// Takes what `systemctl show` says of a unit that is loaded.
    fn update(&mut self, shown: &str) {
        let properties: BTreeMap<&str, &str> = shown
            .lines()
            .filter_map(|line| line.split_once('='))
            .collect();
        let property = |name| properties.get(name).copied().unwrap_or_default();
        if property("LoadState") != "loaded" {
            return;
        }
        if let Some(user) = Some(property("User")).filter(|user| !user.is_empty()) {
            user.clone_into(&mut self.user);
        }
        if let Some(group) = Some(property("Group")).filter(|group| !group.is_empty()) {
            group.clone_into(&mut self.group);
        }
        property("StatusText").clone_into(&mut self.status);
        let groups = property("SupplementaryGroups").split_whitespace();
        self.more_groups = groups.map(Into::into).collect();
        let assigned = split(property("Environment"));
        let assigned = assigned.iter().filter_map(|word| word.split_once('='));
        self.environment
            .extend(assigned.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}

/// Words, of which those with white space are quoted.
fn split(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match (char, quote) {
            (_, Some(open)) if char == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(char);
                word.get_or_insert_default();
            }
            ('\\', _) => word.get_or_insert_default().extend(chars.next()),
            (_, None) if char.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word);
    words
}

/// What an `EnvironmentFile=` sets (systemd.exec(5)).
fn parse_environment(text: &str) -> BTreeMap<String, String> {
    // A backslash at its end goes on with a line.
    let text = text.replace("\\\n", "");
    let assigned = text.lines().map(str::trim).filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        let is_comment = line.starts_with(['#', ';']);
        (!is_comment).then(|| (name.trim().to_owned(), value.trim()))
    });
    let unquoted = assigned.map(|(name, value)| (name, unquote(value)));
    unquoted.collect()
}

/// A value as it is meant: quotes hold words together, outside of them white space stays, too.
fn unquote(value: &str) -> String {
    let (mut meant, mut quote) = (String::new(), None);
    let mut chars = value.chars();
    while let Some(char) = chars.next() {
        match (char, quote) {
            (_, Some(open)) if char == open => quote = None,
            ('"' | '\'', None) => quote = Some(char),
            ('\\', None | Some('"')) => meant.extend(chars.next()),
            _ => meant.push(char),
        }
    }
    meant
}

/// The unit's credentials in a folder that nobody else enters; gone when dropped.
struct Credentials(PathBuf);

impl Credentials {
    fn make(from: &Path) -> io::Result<Self> {
        let run = Path::new("/run");
        let base = match rustix::process::geteuid().is_root() && run.is_dir() {
            true => run.to_owned(),
            false => env::temp_dir(),
        };
        let folder = base.join(format!("droidrelay-doctor-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&folder)?;
        let made = Credentials(folder);
        for name in CREDENTIALS {
            // What cannot be read is missing for the service, too, unless it is for us alone: then
            // the element that wants it says so.
            let secret = fs::read(from.join(name)).unwrap_or_else(|_| b"\n".into());
            let mut file = fs::OpenOptions::new();
            let file = file.write(true).create_new(true).mode(0o400);
            io::Write::write_all(&mut file.open(made.0.join(name))?, &secret)?;
        }
        Ok(made)
    }

    fn give_to(&self, ids: &Ids) -> io::Result<()> {
        let (user, group) = (Some(ids.user), Some(ids.group));
        for name in CREDENTIALS {
            unix_fs::chown(self.0.join(name), user, group)?;
        }
        unix_fs::chown(&self.0, user, group)
    }
}

impl Drop for Credentials {
    fn drop(&mut self) {
        // What is left goes with the next start of the machine.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Whose rights a service has.
struct Ids {
    user: libc::uid_t,
    group: libc::gid_t,
    groups: Vec<libc::gid_t>,
}

impl Ids {
    fn of(unit: &Unit) -> Result<Self, String> {
        let name = |name: &str| CString::new(name).map_err(|_| format!("{name:?} is no name"));
        let user = name(&unit.user)?;
        let group_of = |group: &str| {
            let name = name(group)?;
            // SAFETY: a name that ends with 0; nobody else asks for groups meanwhile, and what is
            // pointed to is read at once.
            let found = unsafe {
                libc::getgrnam(name.as_ptr())
                    .as_ref()
                    .map(|entry| entry.gr_gid)
            };
            found.ok_or_else(|| format!("there is no group {group}"))
        };
        // SAFETY: as above, of users.
        let found = unsafe {
            libc::getpwnam(user.as_ptr())
                .as_ref()
                .map(|entry| entry.pw_uid)
        };
        let id = found.ok_or_else(|| format!("there is no user {}", unit.user))?;
        let group = group_of(&unit.group)?;
        let mut groups = vec![0; 64];
        let mut count = groups.len() as libc::c_int;
        // SAFETY: it writes at most `count` numbers, which have their place, and says how many.
        unsafe { libc::getgrouplist(user.as_ptr(), group, groups.as_mut_ptr(), &mut count) };
        groups.truncate(usize::try_from(count).unwrap_or(0));
        for more in &unit.more_groups {
            groups.push(group_of(more)?);
        }
        Ok(Ids {
            user: id,
            group,
            groups,
        })
    }

    /// Makes `command` run with these rights and no others.
    fn take_on(self, command: &mut Command) {
        let take_on = move || {
            // SAFETY: system calls alone, on numbers and memory that were there before the fork.
            let taken = unsafe {
                libc::setgroups(self.groups.len(), self.groups.as_ptr()) == 0
                    && libc::setresgid(self.group, self.group, self.group) == 0
                    && libc::setresuid(self.user, self.user, self.user) == 0
            };
            match taken {
                true => Ok(()),
                false => Err(io::Error::last_os_error()),
            }
        };
        // SAFETY: it allocates nothing and takes no lock.
        unsafe { command.pre_exec(take_on) };
    }
}

/// The doctor's own options, for the one who looks in its place.
pub fn options(settings: &[String], publish: bool) -> Vec<OsString> {
    let set = settings
        .iter()
        .flat_map(|setting| [OsStr::new("--set").into(), OsString::from(setting)]);
    set.chain(publish.then(|| "--publish".into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_file_is_read_as_systemd_does() {
        let text = "# BROKER=no\n; TOPIC=no\nBROKER = mqtts://cloud.example\n\nCAMERA=\"v4l2src device=/dev/video2\"\nPIN='a\\b \"c\"'\nLONG=one \\\ntwo\nESCAPED=a\\ b\nnonsense\n";
        let read = parse_environment(text);
        let expected = [
            ("BROKER", "mqtts://cloud.example"),
            ("CAMERA", "v4l2src device=/dev/video2"),
            ("PIN", "a\\b \"c\""),
            ("LONG", "one two"),
            ("ESCAPED", "a b"),
        ];
        let expected: BTreeMap<_, _> = expected
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        assert_eq!(read, expected);
    }

    #[test]
    fn what_systemctl_says_replaces_what_the_unit_says_if_it_is_loaded() {
        let mut unit = Unit::read("no-such-robot");
        assert_eq!(unit.user, "droidrelay");
        unit.update("LoadState=not-found\nUser=\nGroup=\nSupplementaryGroups=\nEnvironment=\n");
        assert_eq!(unit.more_groups, ["video", "render", "audio"]);
        unit.update("LoadState=loaded\nUser=robot\nGroup=\nSupplementaryGroups=video dialout\nEnvironment=HOME=/srv \"CAMERA=v4l2src device=/dev/video2\"\nStatusText=idle, no MQTT session: x=y\n");
        assert_eq!(unit.user, "robot");
        assert_eq!(unit.status, "idle, no MQTT session: x=y");
        assert_eq!(unit.group, "droidrelay");
        assert_eq!(unit.more_groups, ["video", "dialout"]);
        assert_eq!(unit.environment["HOME"], "/srv");
        assert_eq!(unit.environment["CAMERA"], "v4l2src device=/dev/video2");
    }

    #[test]
    fn a_service_is_named_by_its_name_or_its_unit_and_a_file_is_none() {
        for (given, name) in [
            ("front", Some("front")),
            ("droidrelay@front.service", Some("front")),
            ("front.launch", None),
            ("/etc/droidrelay/front", None),
            ("Cargo.toml", None),
        ] {
            assert_eq!(name_of(Path::new(given)), name, "{given}");
        }
    }
}
