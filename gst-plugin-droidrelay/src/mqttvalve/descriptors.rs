// SPDX-License-Identifier: MPL-2.0

//! What this process still has open of the devices of elements that are in NULL: when v4l2src of
//! GStreamer 1.22 stops, it keeps a reference to its buffer pool, and with it its device, wherever
//! the driver lets the pool be orphaned (`gst_v4l2_object_stop`).

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    time::Duration,
};

use gst::prelude::*;

/// A device that an element has opened.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Device {
    element: String,
    path: String,
    number: u64,
}

/// Devices of upstream, and which of them are open though what has opened them is stopped.
///
/// What is downstream may have frames of a camera for a moment after it was stopped, and with them
/// its device: it is looked at a little later, and then from time to time.
#[derive(Debug, Default)]
pub struct Devices {
    /// Also those that are gone from `/dev`.
    known: Vec<Device>,
    look_at: Option<Duration>,
    still_open: Vec<String>,
    /// Those that a warning has named.
    named: Vec<String>,
}

/// An encoder on a busy board takes seconds to give back the last frames.
const LOOK_AFTER: Duration = Duration::from_secs(4);
const LOOK_AGAIN: Duration = Duration::from_secs(30);

impl Devices {
    /// Takes note of the devices of `elements`, which run.
    pub fn started(&mut self, elements: &[gst::Element]) {
        self.rest();
        self.note(elements);
    }

    /// What is open may be.
    pub fn rest(&mut self) {
        (self.look_at, self.still_open) = (None, Vec::new());
    }

    /// Notes a device by its number: after it was unplugged nothing has its name.
    fn note(&mut self, elements: &[gst::Element]) {
        for device in devices(elements) {
            self.known
                .retain(|known| known.path != device.path || known.descriptors() > 0);
            if !self.known.contains(&device) {
                self.known.push(device);
            }
        }
    }

    /// `elements` are stopped.
    pub fn stopped(&mut self, elements: &[gst::Element], now: Duration) {
        self.note(elements);
        self.look_at = Some(now + LOOK_AFTER);
    }

    /// When to look again.
    pub fn due(&self) -> Option<Duration> {
        self.look_at
    }

    pub fn still_open(&self) -> &[String] {
        &self.still_open
    }

    /// Looks, where that is due; gives a warning for each device that was not named before.
    pub fn look(&mut self, now: Duration) -> Vec<String> {
        if self.look_at.is_none_or(|at| at > now) {
            return Vec::new();
        }
        self.known.retain(|device| device.descriptors() > 0);
        self.look_at = (!self.known.is_empty()).then_some(now + LOOK_AGAIN);
        let paths = self.known.iter().map(|device| device.path.clone());
        self.still_open = paths.collect();
        self.still_open.sort();
        self.still_open.dedup();
        let mut warnings = Vec::new();
        for device in &self.known {
            if !self.named.contains(&device.path) {
                self.named.push(device.path.clone());
                warnings.push(device.told());
            }
        }
        warnings
    }
}

/// The devices that `elements` name by their property `device`.
fn devices(elements: &[gst::Element]) -> Vec<Device> {
    let device = |element: &gst::Element| {
        let property = element.find_property("device")?;
        if property.value_type() != glib::Type::STRING {
            return None;
        }
        let path = element.property::<Option<String>>("device")?;
        Some(Device {
            element: element.name().into(),
            number: character_device(&path)?,
            path,
        })
    };
    elements.iter().filter_map(device).collect()
}

fn character_device(path: impl AsRef<std::path::Path>) -> Option<u64> {
    let metadata = fs::metadata(path).ok()?;
    let is_one = metadata.file_type().is_char_device();
    is_one.then(|| metadata.rdev())
}

impl Device {
    fn told(&self) -> String {
        format!(
            "{} is in NULL, and {} is still open ({} descriptors): if it is v4l2src of GStreamer \
             1.22, set GST_V4L2_FORCE_DRAIN=1 in the environment (droidrelay run does), or restart \
             the process",
            self.element,
            self.path,
            self.descriptors()
        )
    }

    /// How many descriptors of this process are open on it.
    fn descriptors(&self) -> usize {
        let all = fs::read_dir("/proc/self/fd")
            .into_iter()
            .flatten()
            .flatten();
        all.filter(|fd| character_device(fd.path()) == Some(self.number))
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_device_is_named_while_it_is_open_also_when_it_was_unplugged() {
        gst::init().unwrap();
        let folder = std::env::temp_dir().join(format!("droidrelay-device-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("video0");
        symlink("/dev/full", &path).unwrap();
        let camera = gst::ElementFactory::make("v4l2src")
            .property("device", path.to_str().unwrap())
            .build()
            .unwrap();
        let line = [camera];
        let at = Duration::from_secs;
        let mut devices = Devices::default();

        devices.started(&line);
        let open = fs::File::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        devices.stopped(&line, at(10));
        // What is downstream may have its last frames.
        assert!(devices.look(at(13)).is_empty());
        assert!(devices.still_open().is_empty());
        assert_eq!(devices.due(), Some(at(14)));
        let told = devices.look(at(14));
        assert_eq!(told.len(), 1);
        assert!(
            told[0].contains("video0") && told[0].contains("(1 descriptors)"),
            "{told:?}"
        );
        assert_eq!(devices.still_open(), [path.to_str().unwrap()]);
        // Once.
        assert!(devices.look(at(44)).is_empty());
        assert!(!devices.still_open().is_empty());
        drop(open);
        assert!(devices.look(at(74)).is_empty());
        assert!(devices.still_open().is_empty());
        assert_eq!(devices.due(), None);
        fs::remove_dir(&folder).unwrap();
    }
}
