// SPDX-License-Identifier: MPL-2.0

//! The unit of the robot's service, and what is installed beside it.

use std::{fs, path::Path};

fn read(path: &str) -> String {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    fs::read_to_string(root.join(path)).unwrap()
}

fn has(unit: &str, line: &str) -> bool {
    unit.lines().any(|found| found == line)
}

#[test]
fn the_package_installs_the_unit_that_stands_beside_the_launcher() {
    let (ours, packaged) = ("launcher/systemd", "debian");
    let unit = |folder| read(&format!("{folder}/droidrelay@.service"));
    assert_eq!(unit(ours), unit(packaged));
}

/// What each kind of camera needs beyond V4L2, and what makes it known when it is plugged in later.
#[test]
fn the_unit_lets_each_kind_of_camera_and_microphone_work() {
    let unit = read("launcher/systemd/droidrelay@.service");
    for class in ["video4linux", "media", "dma_heap", "drm", "alsa"] {
        let line = format!("DeviceAllow=char-{class} rw");
        assert!(has(&unit, &line), "{line}");
    }
    for module in ["videodev", "snd", "drm"] {
        let service = format!("modprobe@{module}.service");
        for key in ["Wants=", "After="] {
            let found = unit
                .lines()
                .filter_map(|line| line.strip_prefix(key))
                .any(|names| names.split(' ').any(|name| name == service));
            assert!(found, "{key}{service}");
        }
    }
    // libcamera's isolated modules.
    assert!(has(&unit, "RestrictNamespaces=user net"));
    // A Jetson's camera daemon, encoder and memory.
    assert!(has(&unit, "BindPaths=-/tmp/argus_socket"));
    for device in ["char-nvhost*", "char-nvidia*", "/dev/nvmap"] {
        let line = format!("DeviceAllow={device} rw");
        assert!(has(&unit, &line), "{line}");
    }
    let rule = read("launcher/udev/60-droidrelay.rules");
    assert!(has(
        &rule,
        r#"SUBSYSTEM=="dma_heap", GROUP="video", MODE="0660""#
    ));
}
