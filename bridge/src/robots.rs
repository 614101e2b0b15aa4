// SPDX-License-Identifier: MPL-2.0

//! Which robots there are: names, command topics, media paths.

use std::collections::{BTreeMap, HashMap};

use droidrelay_wire::words::topics::{availability_topic, check_topic, state_topic};

/// Stands for the robot's name in a template.
pub const PLACEHOLDER: &str = "{robot}";
const MAX_NAME: usize = 64;

/// One robot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Robot {
    pub name: String,
    /// Command topic.
    pub topic: String,
    /// Path on the media server, without the slash ahead.
    pub path: String,
}

/// What a topic tells of a robot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    State,
    Availability,
    /// What is asked of it.
    Command,
    /// What bridges have noted as asked of it, for a robot that polls.
    Wanted,
    /// Which links to look at it were revoked.
    Shares,
}

/// Topic of [`Word::Wanted`] beside the command topic `topic`.
pub fn wanted_topic(topic: &str) -> String {
    format!("{topic}/wanted")
}

/// Topic of [`Word::Shares`] beside the command topic `topic`.
pub fn shares_topic(topic: &str) -> String {
    format!("{topic}/shares")
}

/// Every topic of the robot with the command topic `topic`, that one last.
pub fn all_topics(topic: &str) -> [String; 5] {
    [
        state_topic(topic),
        availability_topic(topic),
        wanted_topic(topic),
        shares_topic(topic),
        topic.to_owned(),
    ]
}

/// Says what is wrong with a robot's name, which becomes part of topics, paths and URLs.
pub fn check_name(name: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(good) || name.starts_with('.')
    {
        return Err(format!(
            "a robot's name has 1 to {MAX_NAME} letters, digits, '-', '_' or '.' and no dot ahead"
        ));
    }
    Ok(())
}

/// Command topic of every robot that is not listed: `{robot}` is one whole level of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicTemplate {
    before: String,
    after: String,
}

impl TopicTemplate {
    pub fn parse(text: &str) -> Result<Self, String> {
        let example = "for example \"robots/{robot}/stream\"";
        let (before, after) = text
            .split_once(PLACEHOLDER)
            .ok_or_else(|| format!("the topic template lacks {PLACEHOLDER}: {example}"))?;
        let whole = (before.is_empty() || before.ends_with('/'))
            && (after.is_empty() || after.starts_with('/'));
        if !whole || after.contains(PLACEHOLDER) {
            return Err(format!(
                "{PLACEHOLDER} must be one whole level of the topic template, once: {example}"
            ));
        }
        let template = TopicTemplate {
            before: before.to_owned(),
            after: after.to_owned(),
        };
        for topic in all_topics(&template.topic("x")) {
            check_topic(&topic)?;
        }
        Ok(template)
    }

    fn topic(&self, name: &str) -> String {
        format!("{}{name}{}", self.before, self.after)
    }

    fn name_of<'a>(&self, topic: &'a str) -> Option<&'a str> {
        let name = self.level_of(topic)?;
        check_name(name).is_ok().then_some(name)
    }

    /// What stands in the name's place, good or not.
    fn level_of<'a>(&self, topic: &'a str) -> Option<&'a str> {
        let name = topic
            .strip_prefix(self.before.as_str())?
            .strip_suffix(self.after.as_str())?;
        (!name.contains('/')).then_some(name)
    }
}

/// All robots that the bridge knows of by its configuration.
#[derive(Debug, Default)]
pub struct Directory {
    /// Topic and path of robots that are not listed.
    template: Option<(TopicTemplate, String)>,
    listed: BTreeMap<String, Robot>,
    by_topic: HashMap<String, String>,
    default: Option<String>,
}

impl Directory {
    pub fn new(
        template: Option<(TopicTemplate, String)>,
        listed: Vec<Robot>,
        default: Option<String>,
    ) -> Self {
        let by_topic = listed
            .iter()
            .map(|robot| (robot.topic.clone(), robot.name.clone()))
            .collect();
        Directory {
            template,
            listed: listed
                .into_iter()
                .map(|robot| (robot.name.clone(), robot))
                .collect(),
            by_topic,
            default,
        }
    }

    /// The robot of this name, if there can be one.
    pub fn robot(&self, name: &str) -> Option<Robot> {
        if let Some(robot) = self.listed.get(name) {
            return Some(robot.clone());
        }
        let (topic, path) = self.template.as_ref()?;
        check_name(name).ok()?;
        Some(Robot {
            name: name.to_owned(),
            topic: topic.topic(name),
            path: path.replace(PLACEHOLDER, name),
        })
    }

    /// The robot of the endpoints that name none.
    pub fn default_robot(&self) -> Option<Robot> {
        self.robot(self.default.as_deref()?)
    }

    /// The robot that publishes to this path of the media server.
    pub fn by_path(&self, path: &str) -> Option<Robot> {
        if let Some(robot) = self.listed.values().find(|robot| robot.path == path) {
            return Some(robot.clone());
        }
        let (_, template) = self.template.as_ref()?;
        let (before, _) = template.split_once(PLACEHOLDER)?;
        let rest = path.strip_prefix(before)?;
        (1..=MAX_NAME.min(rest.len()))
            .filter_map(|length| rest.get(..length))
            .filter(|name| check_name(name).is_ok() && !self.is_listed(name))
            .find(|name| template.replace(PLACEHOLDER, name) == path)
            .and_then(|name| self.robot(name))
    }

    /// A topic that this bridge hears, and on which an empty message means nothing to anybody: of
    /// no robot where a template covers one, else of a robot.
    pub fn mark_topic(&self, id: &str) -> String {
        let topic = match &self.template {
            Some((template, _)) => {
                let plain = |c: &char| c.is_ascii_alphanumeric();
                let id: String = id.chars().filter(plain).take(MAX_NAME - 1).collect();
                template.topic(&format!("-{id}"))
            }
            None => {
                let first = self.listed.values().next();
                first.map_or(String::new(), |robot| robot.topic.clone())
            }
        };
        wanted_topic(&topic)
    }

    pub fn listed(&self) -> impl Iterator<Item = &str> {
        self.listed.keys().map(String::as_str)
    }

    pub fn is_listed(&self, name: &str) -> bool {
        self.listed.contains_key(name)
    }

    /// Which robot a topic belongs to, and what it tells.
    pub fn resolve<'a>(&'a self, topic: &'a str) -> Option<(&'a str, Word)> {
        let (command, word) = [
            (state_topic(""), Word::State),
            (availability_topic(""), Word::Availability),
            (wanted_topic(""), Word::Wanted),
            (shares_topic(""), Word::Shares),
        ]
        .into_iter()
        .find_map(|(suffix, word)| Some((topic.strip_suffix(suffix.as_str())?, word)))
        .unwrap_or((topic, Word::Command));
        if let Some(name) = self.by_topic.get(command) {
            return Some((name, word));
        }
        let name = self.template.as_ref()?.0.name_of(command)?;
        // A listed robot has its own topic: what stands on the template's is not its word.
        (!self.is_listed(name)).then_some((name, word))
    }

    /// The name in a topic that would be a robot's, had it a good one; and what is wrong with it.
    pub fn misnamed<'a>(&self, topic: &'a str) -> Option<(&'a str, String)> {
        let (template, _) = self.template.as_ref()?;
        let suffixes = all_topics("");
        let mut commands = suffixes
            .iter()
            .filter_map(|suffix| topic.strip_suffix(suffix.as_str()));
        let name = commands.find_map(|command| template.level_of(command))?;
        Some((name, check_name(name).err()?))
    }

    /// Filters that cover every topic of every robot but that of its commands, none of them twice.
    pub fn subscriptions(&self) -> Vec<String> {
        let topics = self.commands().into_iter();
        let beside = |topic: String| {
            all_topics(&topic)
                .into_iter()
                .filter(move |it| *it != topic)
        };
        topics.flat_map(beside).collect()
    }

    /// Filters that cover every robot's command topic.
    pub fn commands(&self) -> Vec<String> {
        let template = self.template.as_ref().map(|(topic, _)| topic);
        let covered =
            |topic: &str| template.is_some_and(|template| template.name_of(topic).is_some());
        self.listed
            .values()
            .map(|robot| robot.topic.clone())
            .filter(|topic| !covered(topic))
            .chain(template.map(|template| template.topic("+")))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn robot(name: &str, topic: &str) -> Robot {
        Robot {
            name: name.into(),
            topic: topic.into(),
            path: "live/stream".into(),
        }
    }

    fn directory() -> Directory {
        let template = TopicTemplate::parse("robots/{robot}/stream").unwrap();
        Directory::new(
            Some((template, "robots/{robot}/live".into())),
            vec![
                robot("old", "robot/stream"),
                robot("inside", "robots/x1/stream"),
            ],
            Some("old".into()),
        )
    }

    #[test]
    fn a_robot_comes_from_the_list_or_else_from_the_template() {
        let directory = directory();
        assert_eq!(directory.robot("old").unwrap().topic, "robot/stream");
        let r7 = directory.robot("r7").unwrap();
        assert_eq!(
            (r7.topic.as_str(), r7.path.as_str()),
            ("robots/r7/stream", "robots/r7/live")
        );
        assert_eq!(directory.default_robot().unwrap().name, "old");
        for wrong in ["", "a/b", "+", "#", "..", "a b", &"x".repeat(65)] {
            assert_eq!(directory.robot(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_path_leads_back_to_its_robot() {
        let name = |path: &str| directory().by_path(path).map(|robot| robot.name);
        assert_eq!(name("robots/r7/live").as_deref(), Some("r7"));
        assert_eq!(name("robots/a-live.x/live").as_deref(), Some("a-live.x"));
        assert!(["old", "inside"].contains(&name("live/stream").unwrap().as_str()));
        for strange in [
            "robots/r7",
            "robots//live",
            "robots/a/b/live",
            "robots/old/live",
            "",
        ] {
            assert_eq!(name(strange), None, "{strange:?}");
        }
    }

    #[test]
    fn a_topic_leads_back_to_its_robot() {
        let directory = directory();
        let resolve = |topic| directory.resolve(topic);
        assert_eq!(resolve("robot/stream/state"), Some(("old", Word::State)));
        assert_eq!(
            resolve("robots/r7/stream/availability"),
            Some(("r7", Word::Availability))
        );
        assert_eq!(
            resolve("robots/r7/stream"),
            Some(("r7", Word::Command)),
            "the command topic itself"
        );
        assert_eq!(
            resolve("robots/x1/stream/state"),
            Some(("inside", Word::State))
        );
        for strange in [
            "robots/old/stream/state",
            "robots/r7/stream/more",
            "robots/a/b/stream/state",
            "x",
        ] {
            assert_eq!(resolve(strange), None, "{strange}");
        }
    }

    #[test]
    fn a_name_that_no_robot_can_have_is_told_from_no_name() {
        let directory = directory();
        for topic in ["robots/k\u{fc}che/stream/state", "robots/a b/stream"] {
            let (name, error) = directory.misnamed(topic).unwrap();
            assert!(topic.contains(name) && error.contains("letters"), "{error}");
        }
        for topic in ["robots/a/b/stream/state", "robots/good/stream/state", "x"] {
            assert_eq!(directory.misnamed(topic), None, "{topic}");
        }
    }

    #[test]
    fn subscriptions_cover_every_robot_once() {
        assert_eq!(
            directory().subscriptions(),
            [
                "robot/stream/state",
                "robot/stream/availability",
                "robot/stream/wanted",
                "robot/stream/shares",
                "robots/+/stream/state",
                "robots/+/stream/availability",
                "robots/+/stream/wanted",
                "robots/+/stream/shares",
            ]
        );
        assert_eq!(directory().commands(), ["robot/stream", "robots/+/stream"]);
    }

    #[test]
    fn a_template_that_no_wildcard_covers_is_refused() {
        for wrong in [
            "robots/stream",
            "cam-{robot}/stream",
            "{robot}/{robot}",
            "a/#/{robot}",
        ] {
            assert!(TopicTemplate::parse(wrong).is_err(), "{wrong}");
        }
        assert!(TopicTemplate::parse("{robot}").is_ok());
    }
}
