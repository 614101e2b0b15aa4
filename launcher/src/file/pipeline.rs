// SPDX-License-Identifier: MPL-2.0

//! Builds the pipeline and finds the place in the file that GStreamer complains of.

use gst::prelude::*;

use super::launchfile::{Fault, LaunchFile, Place, Word, is_identifier};
use crate::mask::{Mask, is_secret_name, is_secret_property};

/// Builds what `gst-launch-1.0` would build.
pub fn build(file: &LaunchFile) -> Result<gst::Pipeline, Fault> {
    match parse(file, file.words.len()) {
        Ok(element) => Ok(element
            .downcast::<gst::Pipeline>()
            .unwrap_or_else(|single| {
                let pipeline = gst::Pipeline::new();
                pipeline.add(&single).expect("a new element has no parent");
                pipeline
            })),
        Err(err) => Err(explain(file, &err)),
    }
}

/// How many elements the pipeline holds, bins not counted.
pub fn elements(pipeline: &gst::Pipeline) -> usize {
    pipeline
        .iterate_recurse()
        .into_iter()
        .flatten()
        .filter(|element| !element.is::<gst::Bin>())
        .count()
}

/// The factories that the line names, in its order, and where.
pub fn factories(file: &LaunchFile) -> Vec<(&str, Place)> {
    parts(&file.words)
        .iter()
        .map(|part| (part.factory, part.word.place))
        .collect()
}

/// What the line sets a property of the element `name` to, as it is written there: an element does
/// not give its secrets back. Never print it.
pub fn property(file: &LaunchFile, name: &str, property: &str) -> Option<String> {
    let parts = parts(&file.words);
    let part = part_named(&parts, name)?;
    let set = part.properties.iter().rev();
    set.filter_map(|word| word.property())
        .find(|(key, _)| *key == property)
        .map(|(_, value)| value.trim_matches(['"', '\'']).to_owned())
}

fn parse(file: &LaunchFile, count: usize) -> Result<gst::Element, glib::Error> {
    let _silence = (!file.mask.is_empty()).then(Silence::new);
    gst::parse::launch_full(
        &file.description(count),
        None,
        gst::ParseFlags::FATAL_ERRORS,
    )
}

/// Keeps the parser, which logs the whole description and each value, silent while it lives.
/// (Switching the log off altogether does not hold: a plugin loaded meanwhile turns it on.)
struct Silence(Vec<(gst::DebugCategory, gst::DebugLevel)>);

impl Silence {
    fn new() -> Self {
        let categories = [
            "GST_PIPELINE",
            "GST_PARAMS",
            "GST_PROPERTIES",
            "structure",
            "value",
            "default",
        ]
        .into_iter()
        .filter_map(gst::DebugCategory::get)
        .map(|category| {
            let level = category.threshold();
            category.set_threshold(gst::DebugLevel::None);
            (category, level)
        })
        .collect();
        Silence(categories)
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        for (category, level) in &self.0 {
            category.set_threshold(*level);
        }
    }
}

/// A word that makes an element, and the words that follow it up to the next one.
struct Part<'a> {
    factory: &'a str,
    word: &'a Word,
    properties: Vec<&'a Word>,
}

fn parts(words: &[Word]) -> Vec<Part<'_>> {
    let mut parts: Vec<Part> = Vec::new();
    for word in words {
        let name = word.bare();
        if word.property().is_some() {
            if let Some(part) = parts.last_mut() {
                part.properties.push(word);
            }
        } else if is_identifier(name) {
            parts.push(Part {
                factory: name,
                word,
                properties: Vec::new(),
            });
        }
    }
    parts
}

impl Part<'_> {
    fn class(&self) -> Option<glib::object::ClassRef<'static, gst::Element>> {
        let factory = gst::ElementFactory::find(self.factory)?.load().ok()?;
        glib::Class::<gst::Element>::from_type(factory.element_type())
    }

    fn name(&self) -> Option<&str> {
        self.properties
            .iter()
            .filter_map(|word| word.property())
            .find_map(|(key, value)| (key == "name").then_some(value))
    }
}

/// What the file sets of properties that hold secrets, as their elements say.
pub fn secrets(file: &LaunchFile) -> Mask {
    let mut mask = Mask::default();
    for part in parts(&file.words) {
        let Some(class) = part.class() else { continue };
        for (key, value) in part.properties.iter().filter_map(|word| word.property()) {
            let Some(spec) = class.find_property(key) else {
                continue;
            };
            let says = spec.blurb().unwrap_or_default();
            // A URL's password is hidden without the rest of it.
            if spec.value_type() == glib::Type::STRING
                && !value.contains("://")
                && is_secret_property(key, says)
            {
                mask.hide(value);
                mask.hide(value.trim_matches(['"', '\'']));
            }
        }
    }
    mask
}

/// The part that GStreamer calls `name`: by property, else by factory and counter.
fn part_named<'p, 'w>(parts: &'p [Part<'w>], name: &str) -> Option<&'p Part<'w>> {
    parts
        .iter()
        .find(|part| part.name() == Some(name))
        .or_else(|| {
            let factory = name.trim_end_matches(|c: char| c.is_ascii_digit());
            let number: usize = name[factory.len()..].parse().ok()?;
            parts
                .iter()
                .filter(|part| part.factory == factory && part.name().is_none())
                .nth(number)
        })
}

/// Finds the place that GStreamer complains of, and the remedy. GStreamer gives a kind and a text;
/// what is complained of stands in the text alone.
fn explain(file: &LaunchFile, err: &glib::Error) -> Fault {
    let message = err.message();
    let mut quoted = message.split('"').skip(1).step_by(2);
    let complaint = Complaint {
        words: &file.words,
        parts: parts(&file.words),
        message,
        first: quoted.next().unwrap_or_default(),
        second: quoted.next().unwrap_or_default(),
    };
    match err.kind::<gst::ParseError>() {
        Some(gst::ParseError::NoSuchElement) => complaint.no_such_element(),
        Some(gst::ParseError::NoSuchProperty) => complaint.no_such_property(),
        Some(gst::ParseError::CouldNotSetProperty) => complaint.could_not_set_property(),
        Some(gst::ParseError::Link) if complaint.caps().is_some() => complaint.bad_caps(),
        Some(gst::ParseError::Link) => complaint.no_link(),
        Some(gst::ParseError::Syntax) => complaint.bad_syntax(file),
        _ => {
            let word = find_reference(complaint.words, complaint.first).or(file.words.first());
            Fault::data(word.map(|word| word.place), message)
        }
    }
}

/// What GStreamer's parser says of a launch file.
struct Complaint<'a> {
    words: &'a [Word],
    parts: Vec<Part<'a>>,
    message: &'a str,
    /// What stands in the message's quotes.
    first: &'a str,
    second: &'a str,
}

impl Complaint<'_> {
    fn no_such_element(&self) -> Fault {
        let (words, message, first) = (self.words, self.message, self.first);
        let element = words.iter().find(|word| word.bare() == first);
        let word = element
            .or_else(|| find_reference(words, first))
            .or_else(|| words.iter().find(|word| word.text.contains(first)));
        let is_element = element.is_some() && gst::ElementFactory::find(first).is_none();
        let text = match (is_element, first) {
            (true, "mqttvalve" | "rtmpauthsink") => format!(
                "no element \"{first}\": install gstreamer1.0-droidrelay, or set GST_PLUGIN_PATH to the folder of libgstdroidrelay.so"
            ),
            (true, _) => format!(
                "no element \"{first}\": look for a typing error, or install the plugin that has it (gst-inspect-1.0 {first} must find it)"
            ),
            (false, _) => {
                format!("{message}: give the element meant name={first}, with a pad that fits")
            }
        };
        Fault::data(word.map(|word| word.place), text)
    }

    fn no_such_property(&self) -> Fault {
        let lacks = |part: &&Part| {
            part.class()
                .is_none_or(|class| class.find_property(self.first).is_none())
        };
        let word = self
            .parts
            .iter()
            .filter(lacks)
            .flat_map(|part| &part.properties)
            .find(|word| word.sets(self.first));
        let (message, second) = (self.message, self.second);
        Fault::data(
            word.map(|word| word.place),
            format!("{message}: gst-inspect-1.0 {second} lists those that it has"),
        )
    }

    fn could_not_set_property(&self) -> Fault {
        let (first, second) = (self.first, self.second);
        let value = self
            .message
            .split_once("\" to \"")
            .map_or("", |(_, value)| value.strip_suffix('"').unwrap_or(value));
        let candidates: Vec<(&Part, &Word)> = self
            .parts
            .iter()
            .flat_map(|part| part.properties.iter().map(move |word| (part, *word)))
            .filter(|(_, word)| word.sets(first))
            .collect();
        let of_element = |(part, _): &&(&Part, &Word)| part.factory == second;
        let found = candidates
            .iter()
            .filter(of_element)
            .find(|(_, word)| word.property().is_some_and(|(_, v)| v == value))
            .or_else(|| candidates.iter().find(of_element))
            .or(candidates.first());
        let wanted = found
            .and_then(|(part, _)| part.class()?.find_property(first))
            .map(|spec| format!(" takes a {}", spec.value_type().name()))
            .unwrap_or_default();
        let shown = if is_secret_name(first) {
            "this value".into()
        } else {
            format!("\"{value}\"")
        };
        Fault::data(
            found.map(|(_, word)| word.value_place),
            format!(
                "property \"{first}\" of \"{second}\"{wanted}, not {shown}: gst-inspect-1.0 {second} lists the values allowed"
            ),
        )
    }

    /// The caps in the file that are complained of, which nobody can read.
    fn caps(&self) -> Option<&Word> {
        let is_meant =
            |word: &&Word| word.text.contains('/') && self.first.starts_with(word.text.as_str());
        let word = self.words.iter().find(is_meant);
        word.filter(|_| self.first.parse::<gst::Caps>().is_err())
    }

    fn bad_caps(&self) -> Fault {
        let message = self.message;
        Fault::data(
            self.caps().map(|word| word.place),
            format!("{message}: caps are media/type,name=value,… and stand between two !"),
        )
    }

    fn no_link(&self) -> Fault {
        let message = self.message;
        let names: Vec<&str> = message
            .strip_prefix("could not link ")
            .unwrap_or_default()
            .split([' ', ','])
            .filter(|name| !name.is_empty() && *name != "to")
            .take(2)
            .collect();
        let mut named = names.iter().rev();
        let part = named.find_map(|name| part_named(&self.parts, name));
        Fault::data(
            part.map(|part| part.word.place),
            format!(
                "{message}: their pads do not fit; put a converter, a parser or other caps between them"
            ),
        )
    }

    fn bad_syntax(&self, file: &LaunchFile) -> Fault {
        let message = self.message;
        let word = message
            .strip_prefix("unexpected reference \"")
            .and_then(|named| find_reference(self.words, named.split('"').next()?))
            .or_else(|| unexpected_word(file));
        Fault::data(
            word.map(|word| word.place),
            format!(
                "{message}: elements are joined by !, each ! stands between two of them, properties are name=value"
            ),
        )
    }
}

fn find_reference<'a>(words: &'a [Word], name: &str) -> Option<&'a Word> {
    words.iter().find(|word| {
        word.text
            .strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('.'))
    })
}

/// Where the syntax breaks: at a link without a partner, else at the first word that the
/// longest accepted beginning does not hold.
fn unexpected_word(file: &LaunchFile) -> Option<&Word> {
    let words = &file.words;
    let link = |word: &&Word| word.text == "!";
    let pair = words
        .windows(2)
        .find(|pair| pair.iter().all(|word| link(&word)));
    let lonely = words
        .first()
        .filter(link)
        .or(pair.map(|pair| &pair[1]))
        .or(words.last().filter(link));
    if lonely.is_some() {
        return lonely;
    }
    let accepted = (1..words.len()).rev().find(|count| {
        !matches!(
            parse(file, *count),
            Err(err) if err.kind::<gst::ParseError>() == Some(gst::ParseError::Syntax)
        )
    });
    words.get(accepted.unwrap_or(0))
}
