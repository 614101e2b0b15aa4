// SPDX-License-Identifier: MPL-2.0

//! What is upstream of the valve, through bins as well, and what stands against stopping it.

use gst::prelude::*;
use gst_base::prelude::*;

/// Elements that are looked at; a line has far fewer.
const MOST: usize = 1000;

const FED_FROM_OUTSIDE: &str =
    "the valve is in a bin that is fed from outside: put the source beside it";

/// Why upstream is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// The line has no beginning (yet).
    NotLinked,
    /// It cannot be stopped, or not be started again.
    Cannot(String),
}

/// What there is, whatever stands against it.
#[derive(Debug)]
pub struct Survey {
    /// Beside the valve, nearest first.
    pub elements: Vec<gst::Element>,
    /// These, and what is in them.
    pub seen: Vec<gst::Element>,
    /// Other valves that it feeds as well, and nothing else but these.
    pub valves: Vec<gst::Element>,
    /// The first one.
    pub obstacle: Option<Obstacle>,
}

/// Looks at what is upstream of `sink`; an element that is locked in its state and not
/// `is_held` by the valve is somebody else's.
pub fn look(sink: &gst::Pad, is_held: impl Fn(&gst::Element) -> bool) -> Survey {
    let mut walk = Walk {
        valve: sink.parent_element(),
        is_held: &is_held,
        survey: Survey {
            elements: Vec::new(),
            seen: Vec::new(),
            valves: Vec::new(),
            obstacle: None,
        },
        bins: Vec::new(),
    };
    walk.follow(sink, true);
    walk.survey
}

struct Walk<'a> {
    valve: Option<gst::Element>,
    is_held: &'a dyn Fn(&gst::Element) -> bool,
    survey: Survey,
    /// Those that are looked into.
    bins: Vec<gst::Bin>,
}

impl Walk<'_> {
    fn note(&mut self, obstacle: Obstacle) {
        self.survey.obstacle.get_or_insert(obstacle);
    }

    fn cannot(&mut self, reason: String) {
        self.note(Obstacle::Cannot(reason));
    }

    /// Goes on with what feeds `sink`; `beside` the valve, or in a bin.
    fn follow(&mut self, sink: &gst::Pad, beside: bool) {
        let Some(peer) = sink.peer() else {
            return self.note(Obstacle::NotLinked);
        };
        if peer.is::<gst::ProxyPad>() && !peer.is::<gst::GhostPad>() {
            // The inner side of a bin's sink pad. The bin itself is not asked for: it may be the
            // one that is being disposed of.
            let ghost = peer.parent();
            let is_ghost = |pad: &gst::Pad| Some(pad.upcast_ref()) == ghost.as_ref();
            let mut entered = self.bins.iter().flat_map(|bin| bin.sink_pads());
            // What feeds a bin is looked at as what feeds an element.
            if !entered.any(|pad| is_ghost(&pad)) {
                self.cannot(FED_FROM_OUTSIDE.into());
            }
            return;
        }
        match peer.parent_element() {
            Some(element) => self.add(&element, &peer, beside),
            None => self.cannot(FED_FROM_OUTSIDE.into()),
        }
    }

    /// Goes on with `element`, whose pad `src` feeds the line.
    fn add(&mut self, element: &gst::Element, src: &gst::Pad, beside: bool) {
        if self.survey.seen.contains(element) {
            return;
        }
        if self.survey.seen.len() > MOST {
            return self.cannot(format!("more than {MOST} elements are upstream"));
        }
        self.survey.seen.push(element.clone());
        if let Err(reason) = self.check(element, src) {
            self.cannot(reason);
        }
        let branches = element.src_pads().into_iter().filter(|pad| pad != src);
        for branch in branches.filter(|pad| pad.is_linked()) {
            if let Err(reason) = self.descend(&branch, element, beside) {
                self.cannot(reason);
            }
        }
        if beside {
            self.survey.elements.push(element.clone());
        }
        if let Some(bin) = element.downcast_ref::<gst::Bin>() {
            match src.downcast_ref::<gst::GhostPad>() {
                Some(ghost) if bin.type_() == gst::Bin::static_type() => self.enter(bin, ghost),
                _ => {
                    if let Err(reason) = check_own(bin) {
                        self.cannot(reason);
                    }
                }
            }
        }
        for pad in element.sink_pads() {
            self.follow(&pad, beside);
        }
    }

    /// Goes on inside `bin`, which must hold nothing but what feeds its pad `ghost`.
    fn enter(&mut self, bin: &gst::Bin, ghost: &gst::GhostPad) {
        self.bins.push(bin.clone());
        let inner = ghost.target();
        let element = inner.as_ref().and_then(|inner| inner.parent_element());
        let Some((inner, element)) = inner.zip(element) else {
            return self.note(Obstacle::NotLinked);
        };
        self.add(&element, &inner, false);
        for child in bin.children() {
            if !self.survey.seen.contains(&child) {
                // What it will feed is not linked to it yet.
                if child.pad_template_list().iter().any(is_fleeting) {
                    return self.cannot(fleeting(&child));
                }
                let (bin, child) = (bin.name(), child.name());
                self.cannot(format!(
                    "{bin} holds {child}, which does not feed the valve"
                ));
            }
        }
    }

    fn is_valve(&self, element: &gst::Element) -> bool {
        let valve = self.valve.as_ref();
        valve.is_some_and(|valve| valve.type_() == element.type_())
    }

    /// Follows another branch of `element`: it may end in a valve that stops it as well, and
    /// nowhere else.
    fn descend(
        &mut self,
        branch: &gst::Pad,
        element: &gst::Element,
        beside: bool,
    ) -> Result<(), String> {
        let count = element.num_src_pads();
        let other = format!(
            "{} feeds {count} branches: stopping it would stop the others",
            element.name()
        );
        let mut between = Vec::new();
        let ends = self.branch_end(branch, beside, &mut between);
        // Nearest to the valve first, as on the way up.
        for element in between.into_iter().rev() {
            if !self.survey.seen.contains(&element) {
                self.survey.seen.push(element.clone());
                self.survey.elements.push(element);
            }
        }
        let valve = ends.ok_or_else(|| other.clone())?;
        if Some(&valve) != self.valve.as_ref() {
            self.survey.valves.push(valve.clone());
        }
        match is_cold(&valve) {
            true => Ok(()),
            false => Err(format!("{other} ({} is not cold)", valve.name())),
        }
    }

    /// The valve that is all that `branch` leads to, through the elements `between`.
    fn branch_end(
        &self,
        branch: &gst::Pad,
        beside: bool,
        between: &mut Vec<gst::Element>,
    ) -> Option<gst::Element> {
        let mut src = branch.clone();
        loop {
            let next = src.peer()?.parent_element()?;
            if self.is_valve(&next) {
                return Some(next);
            }
            let (1, [pad]) = (next.num_sink_pads(), &next.src_pads()[..]) else {
                return None;
            };
            let is_locked = next.is_locked_state() && !(self.is_held)(&next);
            if !beside || next.is::<gst::Bin>() || is_locked || between.len() > MOST {
                return None;
            }
            src = pad.clone();
            between.push(next);
        }
    }

    fn check(&self, element: &gst::Element, src: &gst::Pad) -> Result<(), String> {
        let name = element.name();
        let template = src.pad_template();
        if self.is_valve(element) {
            Err(format!(
                "{name} upstream is such a valve too, which has the camera to stop"
            ))
        } else if element.is_locked_state() && !(self.is_held)(element) {
            Err(format!("{name} is locked in its state by the application"))
        } else if element.element_flags().contains(gst::ElementFlags::SINK) {
            Err(format!(
                "{name} holds a sink, which would be stopped with it"
            ))
        } else if template.as_ref().is_some_and(is_fleeting) {
            Err(fleeting(element))
        } else {
            check_live(element)
        }
    }
}

fn is_cold(valve: &gst::Element) -> bool {
    let standby = valve.property_value("standby");
    glib::EnumValue::from_value(&standby).is_some_and(|(_, value)| value.nick() == "cold")
}

/// Whether its pads come and go as their element runs.
fn is_fleeting(template: &gst::PadTemplate) -> bool {
    template.direction() == gst::PadDirection::Src
        && template.presence() == gst::PadPresence::Sometimes
}

fn fleeting(element: &gst::Element) -> String {
    let name = element.name();
    format!("{name} makes its pads as it runs: they would be gone after a restart")
}

fn check_live(element: &gst::Element) -> Result<(), String> {
    match element.downcast_ref::<gst_base::BaseSrc>() {
        Some(source) if !source.is_live() => Err(format!(
            "{} is not live: it would start over with old time stamps",
            source.name()
        )),
        _ => Ok(()),
    }
}

/// A bin that is an element of its own makes and links what it holds by itself; only the sources
/// in it are looked at.
fn check_own(bin: &gst::Bin) -> Result<(), String> {
    // These (autovideosrc) hold a stand-in until they have chosen.
    if glib::Type::from_name("GstAutoDetect").is_some_and(|it| bin.type_().is_a(it)) {
        return Ok(());
    }
    let mut children = bin.iterate_recurse().into_iter().flatten();
    children.try_for_each(|child| check_live(&child))
}
