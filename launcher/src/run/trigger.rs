// SPDX-License-Identifier: MPL-2.0

//! `--trigger`: element messages on the bus that open the valves, such as motion or sound.

use std::{
    cmp::Ordering,
    str::FromStr,
    time::{Duration, Instant},
};

/// Messages that come faster renew a lease only so often.
const RENEWAL: Duration = Duration::from_secs(1);

/// `NAME:lease=SECONDS[,CONDITION]…`
#[derive(Debug, Clone, PartialEq)]
pub struct Trigger {
    /// Of the message's structure; also the id of the lease.
    pub name: String,
    /// Seconds; at least 1.
    pub lease: u32,
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, PartialEq)]
struct Condition {
    field: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq)]
enum Test {
    Present(bool),
    /// Whether one of the field's values stands to this one in one of these orders has to be so.
    Compared(&'static [Ordering], String, bool),
}

/// Longer ones first, so that none is taken for the beginning of another.
const OPERATORS: [(&str, &[Ordering], bool); 6] = [
    ("!=", &[Ordering::Equal], false),
    ("<=", &[Ordering::Less, Ordering::Equal], true),
    (">=", &[Ordering::Greater, Ordering::Equal], true),
    ("=", &[Ordering::Equal], true),
    ("<", &[Ordering::Less], true),
    (">", &[Ordering::Greater], true),
];

impl FromStr for Trigger {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        if name.is_empty() || name.contains([',', '=']) {
            return Err("it begins with no message's name: write NAME:lease=30".into());
        }
        let mut lease = None;
        let mut conditions = Vec::new();
        for part in rest.split(',').filter(|part| !part.is_empty()) {
            match part.strip_prefix("lease=") {
                Some(seconds) => {
                    let seconds = seconds.parse::<u32>().ok().filter(|seconds| *seconds > 0);
                    lease = Some(seconds.ok_or_else(|| {
                        format!("{part}: a lease is a number of whole seconds, at least 1")
                    })?);
                }
                None => conditions.push(part.parse()?),
            }
        }
        Ok(Trigger {
            name: name.to_owned(),
            lease: lease.ok_or_else(|| {
                format!("it has no lease: write {name}:lease=30 to open for 30 s")
            })?,
            conditions,
        })
    }
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let at = OPERATORS
            .iter()
            .filter_map(|(operator, orders, wanted)| {
                let at = text.find(operator).filter(|at| *at > 0)?;
                let value = text[at + operator.len()..].to_owned();
                Some((at, Test::Compared(orders, value, *wanted)))
            })
            .reduce(|first, other| if other.0 < first.0 { other } else { first });
        let (field, test) = match (at, text.strip_prefix('!')) {
            (Some((at, test)), _) => (&text[..at], test),
            (None, Some(field)) => (field, Test::Present(false)),
            (None, None) => (text, Test::Present(true)),
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        if field.is_empty() || !field.chars().all(is_name) {
            return Err(format!(
                "condition {text:?}: write FIELD, !FIELD, or FIELD and =, !=, <, <=, > or >= with a value"
            ));
        }
        Ok(Condition {
            field: field.to_owned(),
            test,
        })
    }
}

impl Trigger {
    pub fn matches(&self, structure: &gst::StructureRef) -> bool {
        structure.name() == self.name.as_str()
            && self
                .conditions
                .iter()
                .all(|condition| condition.holds(structure))
    }
}

impl Condition {
    fn holds(&self, structure: &gst::StructureRef) -> bool {
        let value = structure.value(&self.field).ok();
        match &self.test {
            Test::Present(wanted) => value.is_some() == *wanted,
            Test::Compared(orders, operand, wanted) => value.is_some_and(|value| {
                let compared =
                    |value: &_| order(value, operand).is_some_and(|order| orders.contains(&order));
                any(value, &compared) == *wanted
            }),
        }
    }
}

/// Whether `holds` for the value, or for one of its values where it is a list, such as one for
/// each channel.
fn any(value: &glib::Value, holds: &dyn Fn(&glib::Value) -> bool) -> bool {
    if let Ok(list) = value.get::<gst::Array>() {
        return list.iter().any(|value| holds(value));
    }
    if let Ok(list) = value.get::<gst::List>() {
        return list.iter().any(|value| holds(value));
    }
    if let Ok(list) = value.get::<glib::ValueArray>() {
        return list.iter().any(holds);
    }
    holds(value)
}

/// How `value` stands to `wanted`: as numbers where both are, else as texts.
fn order(value: &glib::Value, wanted: &str) -> Option<Ordering> {
    let text = |value: &glib::Value| value.transform::<String>().ok()?.get::<String>().ok();
    if let Ok(flag) = value.get::<bool>() {
        return Some(flag.to_string().as_str().cmp(&wanted.to_ascii_lowercase()));
    }
    let number = value
        .transform::<f64>()
        .ok()
        .and_then(|number| number.get::<f64>().ok())
        .filter(|_| !value.is::<String>());
    match (number, wanted.parse::<f64>()) {
        (Some(number), Ok(wanted)) => number.partial_cmp(&wanted),
        _ => Some(text(value)?.as_str().cmp(wanted)),
    }
}

/// The triggers of a run, and when each last renewed its lease.
#[derive(Debug, Default)]
pub struct Triggers(Vec<Armed>);

#[derive(Debug)]
struct Armed {
    trigger: Trigger,
    fired: u64,
    renewed: Option<Instant>,
}

impl Triggers {
    pub fn new(triggers: Vec<Trigger>) -> Self {
        let arm = |trigger| Armed {
            trigger,
            fired: 0,
            renewed: None,
        };
        Triggers(triggers.into_iter().map(arm).collect())
    }

    /// The leases that a message takes or renews: id, seconds, and whether it is for the first
    /// time in a while.
    pub fn fired(
        &mut self,
        structure: &gst::StructureRef,
        now: Instant,
    ) -> Vec<(String, u32, bool)> {
        let mut leases = Vec::new();
        for armed in &mut self.0 {
            if !armed.trigger.matches(structure) {
                continue;
            }
            armed.fired += 1;
            let age = armed.renewed.map(|at| now.duration_since(at));
            if age.is_none_or(|age| age >= RENEWAL) {
                armed.renewed = Some(now);
                let lease = armed.trigger.lease;
                let over = age.is_none_or(|age| age >= Duration::from_secs(lease.into()));
                leases.push((armed.trigger.name.clone(), lease, over));
            }
        }
        leases
    }

    /// Name and number of messages of each.
    pub fn counts(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0
            .iter()
            .map(|armed| (armed.trigger.name.as_str(), armed.fired))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(trigger: &str, structure: &gst::Structure) -> bool {
        trigger.parse::<Trigger>().unwrap().matches(structure)
    }

    #[test]
    fn a_message_is_known_by_its_name_and_all_conditions() {
        gst::init().unwrap();
        let level = gst::Structure::builder("level")
            .field("rms", gst::Array::new([-60.0f64, -20.0]))
            .field("stream", "left")
            .field("clip", true)
            .field("count", 7i32)
            .build();
        for trigger in [
            "level:lease=30",
            "level:lease=30,rms>-30",
            "level:lease=30,rms<=-60",
            "level:count=7,lease=30",
            "level:lease=30,count>=7,count<8,stream=left",
            "level:lease=30,clip=TRUE",
            "level:lease=30,clip,!motion",
            "level:lease=30,stream!=right",
        ] {
            assert!(matches(trigger, &level), "{trigger}");
        }
        for trigger in [
            "motion:lease=30",
            "level:lease=30,rms>-10",
            "level:lease=30,count=8",
            "level:lease=30,count>7",
            "level:lease=30,clip=false",
            "level:lease=30,!clip",
            "level:lease=30,motion",
            "level:lease=30,motion!=1",
            "level:lease=30,stream!=left",
            "level:lease=30,stream=right",
        ] {
            assert!(!matches(trigger, &level), "{trigger}");
        }
    }

    #[test]
    fn a_bad_trigger_is_refused_with_the_remedy() {
        for (trigger, part) in [
            ("motion", "motion:lease=30"),
            ("motion:", "motion:lease=30"),
            (":lease=30", "no message's name"),
            ("motion:lease=0", "at least 1"),
            ("motion:lease=1.5", "whole seconds"),
            ("motion:lease=30,=7", "FIELD"),
            ("motion:lease=30,a b>7", "FIELD"),
        ] {
            let error = trigger.parse::<Trigger>().unwrap_err();
            assert!(error.contains(part), "{trigger}: {error}");
        }
    }

    #[test]
    fn a_flood_of_messages_renews_once_a_second() {
        gst::init().unwrap();
        let motion = gst::Structure::new_empty("motion");
        let mut triggers = Triggers::new(vec!["motion:lease=3".parse().unwrap()]);
        let start = Instant::now();
        let mut fired = |millis| triggers.fired(&motion, start + Duration::from_millis(millis));
        assert_eq!(fired(0), [("motion".to_owned(), 3, true)]);
        assert!(fired(999).is_empty());
        assert_eq!(fired(1000), [("motion".to_owned(), 3, false)]);
        assert_eq!(fired(4000), [("motion".to_owned(), 3, true)]);
        assert_eq!(triggers.counts().collect::<Vec<_>>(), [("motion", 4)]);
    }
}
