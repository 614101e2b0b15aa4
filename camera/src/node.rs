// SPDX-License-Identifier: MPL-2.0

//! A node of V4L2: what it is for, and which formats its pictures have. Asking starts nothing.

use std::{fs, os::fd::AsRawFd};

/// `VIDIOC_QUERYCAP` (linux/videodev2.h): what it writes, and where the words are in it.
const QUERYCAP: libc::c_ulong = 0x8068_5600;
const QUERYCAP_SIZE: usize = 104;
const CAPABILITIES: usize = 84;
const DEVICE_CAPABILITIES: usize = 88;
/// The second word says what this node does, not only the whole device.
const HAS_DEVICE_CAPABILITIES: u32 = 0x8000_0000;
/// Pictures come from it: in one plane, in several.
const CAPTURE: u32 = 0x0000_0001 | 0x0000_1000;
/// Pictures go into it and come out of it again: an encoder, a converter.
const MEMORY_TO_MEMORY: u32 = 0x0000_8000 | 0x0000_4000;
const METADATA: u32 = 0x0080_0000 | 0x0800_0000;
/// `VIDIOC_ENUM_FMT`, and where in it the format's four letters are.
const ENUM_FMT: libc::c_ulong = 0xc040_5602;
const ENUM_FMT_SIZE: usize = 64;
const PIXEL_FORMAT: usize = 44;
/// Buffers of pictures in one plane, in several.
const BUFFERS: [u32; 2] = [1, 9];
/// No driver has as many formats.
const MOST_FORMATS: u32 = 64;

/// What a node of V4L2 is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    Camera,
    Converter,
    Metadata,
    Other,
}

impl Node {
    fn of(capabilities: u32, of_device: u32) -> Self {
        let has = match capabilities & HAS_DEVICE_CAPABILITIES {
            0 => capabilities,
            _ => of_device,
        };
        match has {
            _ if has & MEMORY_TO_MEMORY != 0 => Node::Converter,
            _ if has & CAPTURE != 0 => Node::Camera,
            _ if has & METADATA != 0 => Node::Metadata,
            _ => Node::Other,
        }
    }

    /// None for what is not of V4L2.
    pub fn ask(file: &fs::File) -> Option<Self> {
        let mut answer = [0u8; QUERYCAP_SIZE];
        // SAFETY: the kernel writes as many bytes as the number of the call says, which are there.
        let asked = unsafe { libc::ioctl(file.as_raw_fd(), QUERYCAP as _, answer.as_mut_ptr()) };
        let word = |at: usize| {
            let bytes = answer[at..at + 4].try_into();
            u32::from_ne_bytes(bytes.expect("four bytes"))
        };
        (asked == 0).then(|| Node::of(word(CAPABILITIES), word(DEVICE_CAPABILITIES)))
    }

    pub fn name(self) -> &'static str {
        match self {
            Node::Camera => "a camera",
            Node::Converter => "an encoder or converter, not a camera",
            Node::Metadata => "a camera's metadata, no pictures",
            Node::Other => "no camera",
        }
    }
}

/// The formats in which a camera gives pictures, by their four letters, the driver's first first.
pub fn formats(file: &fs::File) -> Vec<[u8; 4]> {
    let ask = |buffers: u32, index: u32| {
        let mut asked = [0u8; ENUM_FMT_SIZE];
        asked[..4].copy_from_slice(&index.to_ne_bytes());
        asked[4..8].copy_from_slice(&buffers.to_ne_bytes());
        // SAFETY: the kernel reads and writes as many bytes as the number of the call says, which
        // are there.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), ENUM_FMT as _, asked.as_mut_ptr()) };
        let format = asked[PIXEL_FORMAT..PIXEL_FORMAT + 4].try_into();
        (done == 0).then(|| format.expect("four bytes"))
    };
    let of = |buffers| (0..MOST_FORMATS).map_while(move |index| ask(buffers, index));
    BUFFERS.into_iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_is_for_is_told_by_the_node_and_not_by_its_device() {
        // A USB camera says of both of its nodes what the whole device can.
        let both = HAS_DEVICE_CAPABILITIES | CAPTURE | METADATA;
        assert_eq!(Node::of(both, 0x0420_0001), Node::Camera);
        assert_eq!(Node::of(both, 0x04a0_0000), Node::Metadata);
        assert_eq!(
            Node::of(HAS_DEVICE_CAPABILITIES, 0x0400_4000),
            Node::Converter
        );
        assert_eq!(Node::of(0x0400_0001, 0), Node::Camera, "an old driver");
        assert_eq!(Node::of(HAS_DEVICE_CAPABILITIES, 2), Node::Other);
        let file = fs::File::open("/dev/null").unwrap();
        assert_eq!(Node::ask(&file), None);
        assert!(formats(&file).is_empty());
    }
}
