// SPDX-License-Identifier: MPL-2.0

//! What cargo has built: the plugin and the programs, and whether they are what the sources say.
//! `cargo test` builds tests and their crates anew, but not what stands in `target/debug`.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

const BUILD: &str = "run `cargo build --workspace` with the profile of the tests";

/// The built file `name` beside this program, or one folder up (tests run in `deps`); refused
/// where one of its sources is younger.
pub fn artifact(name: &str) -> Result<PathBuf> {
    let program = env::current_exe()?;
    let built = program
        .ancestors()
        .skip(1)
        .take(2)
        .filter(|folder| !folder.ends_with("deps"))
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not built for {}: {BUILD}", program.display()))?;
    ensure_current(&built)?;
    Ok(built)
}

/// Fails where `built` is older than one of the sources that cargo names in the file `.d` beside
/// it: those of all crates of this workspace that went into it. This crate did not, though `cargo
/// build --all-targets` lists it with what the tests of a crate need. Where there is no such file it
/// is an installed one, and cargo has nothing to say about it.
pub fn ensure_current(built: &Path) -> Result<()> {
    let list = built.with_extension("d");
    let text = match fs::read_to_string(&list) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        text => text.with_context(|| list.display().to_string())?,
    };
    let made = modified(built)?;
    let testkit = Path::new(env!("CARGO_MANIFEST_DIR"));
    for source in sources(&text)
        .iter()
        .filter(|source| !source.starts_with(testkit))
    {
        let current = modified(source).is_ok_and(|changed| changed <= made);
        ensure!(
            current,
            "{} is older than {}: {BUILD}",
            built.display(),
            source.display()
        );
    }
    Ok(())
}

fn modified(path: &Path) -> Result<std::time::SystemTime> {
    let metadata = fs::metadata(path).with_context(|| path.display().to_string())?;
    Ok(metadata.modified()?)
}

/// The files behind the colon of a rule of make; a space in a name has a backslash before it.
fn sources(rule: &str) -> Vec<PathBuf> {
    const SPACE: &str = "\0";
    let (_, files) = rule.split_once(": ").unwrap_or_default();
    let files = files.lines().next().unwrap_or_default();
    let files = files.replace("\\ ", SPACE);
    let files = files.split_whitespace();
    files.map(|file| file.replace(SPACE, " ").into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_installed_is_current_and_what_is_older_than_a_source_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (built, source) = (folder.path().join("built"), folder.path().join("source"));
        fs::write(&built, "").unwrap();
        ensure_current(&built).unwrap();
        let rule = format!("{}: {}\n", built.display(), source.display());
        fs::write(built.with_extension("d"), rule).unwrap();
        let missing = ensure_current(&built).unwrap_err().to_string();
        assert!(missing.contains("source"), "{missing}");
        fs::write(&source, "").unwrap();
        let made = modified(&source).unwrap();
        let older = made - std::time::Duration::from_secs(1);
        let date = |path: &Path, time| {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_modified(time).unwrap();
        };
        date(&source, older);
        ensure_current(&built).unwrap();
        date(&built, older - std::time::Duration::from_secs(1));
        assert!(ensure_current(&built).is_err());
    }

    #[test]
    fn sources_are_read_from_a_rule_of_make() {
        let expected = ["/a b/c.rs", "/d.rs"].map(PathBuf::from);
        assert_eq!(sources("/x/y.so: /a\\ b/c.rs /d.rs\n"), expected);
        assert_eq!(sources("/x/y.so:\n"), Vec::<PathBuf>::new());
    }
}
