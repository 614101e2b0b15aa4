// SPDX-License-Identifier: MPL-2.0

//! Recordings make room for others: `--keep-free` deletes the oldest files of a pattern while less
//! than that is free on their disk.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    time::SystemTime,
};

/// How much of a disk is to stay free.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Share {
    Percent(u8),
    Bytes(u64),
}

/// What `--keep-free` says.
#[derive(Debug, Clone, PartialEq)]
pub struct Retention {
    free: Share,
    folder: PathBuf,
    /// Of a file's name, what stands before and behind the `*`.
    prefix: String,
    suffix: String,
}

impl FromStr for Retention {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("{what}: write 10%=/var/lib/droidrelay/*.ts or 5G=…");
        let (free, pattern) = text.split_once('=').ok_or_else(|| wrong("no ="))?;
        let free = share(free).ok_or_else(|| wrong(&format!("{free:?} is no share of a disk")))?;
        let path = Path::new(pattern);
        let folder = path.parent().filter(|_| path.is_absolute());
        let folder = folder.ok_or_else(|| wrong(&format!("{pattern:?} is no absolute path")))?;
        let name = path.file_name().and_then(|name| name.to_str());
        let parts: Vec<&str> = name.unwrap_or_default().split('*').collect();
        let (&[prefix, suffix], false) = (&parts[..], folder.to_string_lossy().contains('*'))
        else {
            return Err(wrong(&format!(
                "{pattern:?} needs one *, in the name of the file"
            )));
        };
        // A pattern that takes everything is more often a mistake than meant.
        if prefix.is_empty() && !suffix.starts_with('.') {
            return Err(wrong(&format!(
                "{pattern:?} takes every file: name a beginning, or an ending with a dot"
            )));
        }
        Ok(Retention {
            free,
            folder: folder.to_owned(),
            prefix: prefix.to_owned(),
            suffix: suffix.to_owned(),
        })
    }
}

fn share(text: &str) -> Option<Share> {
    if let Some(percent) = text.strip_suffix('%') {
        let percent = percent.parse().ok()?;
        return (1..100)
            .contains(&percent)
            .then_some(Share::Percent(percent));
    }
    let (number, unit) = match text.strip_suffix(['M', 'G']) {
        Some(number) if text.ends_with('M') => (number, 1u64 << 20),
        Some(number) => (number, 1 << 30),
        None => (text, 1),
    };
    let bytes = number.parse::<u64>().ok()?.checked_mul(unit)?;
    (bytes > 0).then_some(Share::Bytes(bytes))
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (folder, prefix, suffix) = (self.folder.display(), &self.prefix, &self.suffix);
        write!(f, "{folder}/{prefix}*{suffix}")
    }
}

/// What a disk holds.
#[derive(Debug, Clone, Copy)]
struct Room {
    free: u64,
    size: u64,
}

impl Room {
    fn of(folder: &Path) -> io::Result<Self> {
        let disk = rustix::fs::statvfs(folder)?;
        Ok(Room {
            free: disk.f_bavail * disk.f_frsize,
            size: disk.f_blocks * disk.f_frsize,
        })
    }
}

impl Share {
    fn is_free(self, room: Room) -> bool {
        match self {
            Share::Percent(percent) => room.free / 100 >= room.size / 10_000 * u64::from(percent),
            Share::Bytes(bytes) => room.free >= bytes,
        }
    }
}

impl Retention {
    /// Deletes what is oldest until enough is free; the newest file stays, somebody writes it. The
    /// files that are gone, and what is wrong.
    pub fn make_room(&self) -> (Vec<String>, Option<String>) {
        self.make_room_in(|| Room::of(&self.folder))
    }

    fn make_room_in(&self, room: impl Fn() -> io::Result<Room>) -> (Vec<String>, Option<String>) {
        let mut gone = Vec::new();
        let fault = |err: &dyn fmt::Display| Some(format!("--keep-free {self}: {err}"));
        let files = match self.files() {
            Ok(files) => files,
            Err(err) => return (gone, fault(&err)),
        };
        let mut oldest = files
            .split_last()
            .map_or(&[][..], |(_, older)| older)
            .iter();
        loop {
            match room() {
                Ok(room) if self.free.is_free(room) => return (gone, None),
                Ok(_) => {}
                Err(err) => return (gone, fault(&err)),
            }
            let Some(file) = oldest.next() else {
                let text = "too little is free, and there is no older file to delete: what else fills the disk?";
                return (gone, fault(&text));
            };
            if let Err(err) = fs::remove_file(file) {
                let text = format!("cannot delete {}: {err}", file.display());
                return (gone, fault(&text));
            }
            gone.push(file.display().to_string());
        }
    }

    /// Files of the pattern, the oldest first.
    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut files: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_meant = name.to_str().is_some_and(|name| {
                let inner = name.strip_prefix(&self.prefix);
                inner.is_some_and(|inner| inner.ends_with(&self.suffix))
            });
            // Of the folder itself: a link leads elsewhere.
            if is_meant && entry.file_type()?.is_file() {
                files.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        files.sort_unstable();
        Ok(files.into_iter().map(|(_, path)| path).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::fs::symlink, time::Duration};

    const SIZE: u64 = 1_000_000;

    /// Files of 100,000 bytes each on a disk of a million that holds nothing else.
    fn room_in(folder: &Path) -> Room {
        let files = fs::read_dir(folder).unwrap().count() as u64;
        Room {
            free: SIZE - 100_000 * files,
            size: SIZE,
        }
    }

    #[test]
    fn the_oldest_recordings_go_until_enough_is_free_and_nothing_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, age: u64| {
            let file = fs::File::create(folder.path().join(name)).unwrap();
            let time = SystemTime::now() - Duration::from_secs(age);
            file.set_modified(time).unwrap();
        };
        // Not in the order of their names.
        for (name, age) in [("b.ts", 40), ("a.ts", 30), ("d.ts", 20), ("c.ts", 10)] {
            write(name, age);
        }
        write("notes.txt", 99);
        symlink("notes.txt", folder.path().join("link.ts")).unwrap();
        let retention = |share: &str| -> Retention {
            let pattern = folder.path().join("*.ts");
            format!("{share}={}", pattern.display()).parse().unwrap()
        };
        let make_room = |share: &str| {
            let (gone, fault) = retention(share).make_room_in(|| Ok(room_in(folder.path())));
            let name = |path: &String| path.rsplit('/').next().unwrap_or_default().to_owned();
            (gone.iter().map(name).collect::<Vec<_>>(), fault)
        };
        assert_eq!(make_room("40%"), (vec![], None));
        assert_eq!(
            make_room("600000"),
            (vec!["b.ts".into(), "a.ts".into()], None)
        );
        let (gone, fault) = make_room("90%");
        assert_eq!(gone, ["d.ts"]);
        assert!(fault.unwrap().contains("no older file"));
        assert!(folder.path().join("c.ts").exists(), "somebody writes it");
        assert!(folder.path().join("notes.txt").exists());
        fs::remove_dir_all(folder.path()).unwrap();
        assert!(retention("40%").make_room().1.is_some());
    }

    #[test]
    fn what_would_delete_the_wrong_files_is_refused() {
        for (text, part) in [
            ("10%", "no ="),
            ("0%=/a/*.ts", "\"0%\""),
            ("100%=/a/*.ts", "\"100%\""),
            ("-1=/a/*.ts", "\"-1\""),
            ("99999999999G=/a/*.ts", "G\""),
            ("10%=a/*.ts", "absolute"),
            ("10%=/a/b.ts", "one *"),
            ("10%=/*/b.ts", "one *"),
            ("10%=/a/*-*.ts", "one *"),
            ("10%=/a/*", "every file"),
        ] {
            let error = text.parse::<Retention>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        let retention: Retention = "5G=/var/lib/droidrelay/*.ts".parse().unwrap();
        assert_eq!(retention.free, Share::Bytes(5 << 30));
        assert_eq!(retention.to_string(), "/var/lib/droidrelay/*.ts");
    }
}
