// SPDX-License-Identifier: MPL-2.0

//! What this process still has open of the devices of elements that are in NULL: with
//! GStreamer 1.22.0, v4l2src keeps buffers, and with them its device.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
};

use gst::prelude::*;

/// A device that an element has opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub element: String,
    pub path: String,
    number: u64,
}

/// The devices that `elements` name by their property `device`.
pub fn devices(elements: &[gst::Element]) -> Vec<Device> {
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
    /// How many descriptors of this process are open on it.
    pub fn descriptors(&self) -> usize {
        let all = fs::read_dir("/proc/self/fd")
            .into_iter()
            .flatten()
            .flatten();
        all.filter(|fd| character_device(fd.path()) == Some(self.number))
            .count()
    }
}
