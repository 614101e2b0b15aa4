// SPDX-License-Identifier: MPL-2.0

//! Where the values of a launch file's variables come from: `--set`, the environment,
//! `$CREDENTIALS_DIRECTORY`, in this order; [`NOW`] has one besides.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    path::PathBuf,
};

use droidrelay_wire::Secret;

use super::launchfile::Value;
use crate::mask::is_secret_name;

/// The time at which the file is read, UTC, for names of files: `20261125T081503Z`.
const NOW: &str = "NOW";

#[derive(Default)]
pub struct Variables {
    set: BTreeMap<String, String>,
    used: BTreeSet<String>,
    credentials: Option<PathBuf>,
}

impl Variables {
    /// Takes the arguments of `--set`. The error never shows a value.
    pub fn new(settings: &[String]) -> Result<Self, String> {
        let mut set = BTreeMap::new();
        for setting in settings {
            let Some((name, value)) = setting.split_once('=') else {
                return Err("--set without =: write --set NAME=VALUE".into());
            };
            if is_secret_name(name) {
                return Err(format!(
                    "--set {name}: everybody on this machine can read a process's arguments; give it in the environment or as file {name} in $CREDENTIALS_DIRECTORY, or use the element's password-file"
                ));
            }
            set.insert(name.to_owned(), value.to_owned());
        }
        Ok(Variables {
            set,
            used: BTreeSet::new(),
            credentials: env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
        })
    }

    pub fn look_up(&mut self, name: &str) -> Result<Option<Value>, String> {
        if let Some(text) = self.set.get(name) {
            self.used.insert(name.to_owned());
            return Ok(Some(Value::plain(text)));
        }
        match env::var(name) {
            Ok(text) => {
                let secret = is_secret_name(name);
                return Ok(Some(Value { text, secret }));
            }
            Err(env::VarError::NotUnicode(_)) => {
                return Err("its value in the environment is not UTF-8: use UTF-8".into());
            }
            Err(env::VarError::NotPresent) => {}
        }
        let file = self.credentials.as_ref().map(|folder| folder.join(name));
        if let Some(file) = file.filter(|file| file.exists()) {
            let text = Secret::from_file(file)?.expose().to_owned();
            return Ok(Some(Value { text, secret: true }));
        }
        if name == NOW {
            let now = glib::DateTime::now_utc().and_then(|now| now.format("%Y%m%dT%H%M%SZ"));
            return Ok(Some(Value::plain(now.map_err(|err| err.to_string())?)));
        }
        Ok(None)
    }

    /// Names given with `--set` that the file did not ask for.
    pub fn unused(&self) -> impl Iterator<Item = &str> {
        self.set
            .keys()
            .filter(|name| !self.used.contains(*name))
            .map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_on_the_command_line_is_refused_without_showing_it() {
        for name in ["RTMP_PASS", "mqtt_password", "Token", "MY_SECRET"] {
            let refusal = Variables::new(&[format!("{name}=hunter2")]).err().unwrap();
            assert!(refusal.contains("CREDENTIALS_DIRECTORY"), "{refusal}");
            assert!(!refusal.contains("hunter2"), "{refusal}");
        }
        assert!(Variables::new(&["hunter2".into()]).is_err());
        assert!(Variables::new(&["RTMP_PASSWORD_FILE=/etc/x".into()]).is_ok());
    }

    #[test]
    fn now_is_a_time_unless_something_else_is_set() {
        let now = Variables::default().look_up("NOW").unwrap().unwrap().text;
        assert_eq!((now.len(), &now[8..9], &now[15..]), (16, "T", "Z"), "{now}");
        let mut variables = Variables::new(&["NOW=x".into()]).unwrap();
        assert_eq!(variables.look_up("NOW").unwrap().unwrap().text, "x");
    }

    #[test]
    fn a_setting_wins_over_the_environment_and_unused_ones_are_known() {
        let mut variables = Variables::new(&["PATH=x=y".into(), "NOBODY=1".into()]).unwrap();
        assert_eq!(variables.look_up("PATH").unwrap().unwrap().text, "x=y");
        assert_eq!(variables.look_up("DROIDRELAY_NO_SUCH"), Ok(None));
        assert_eq!(variables.unused().collect::<Vec<_>>(), ["NOBODY"]);
    }
}
