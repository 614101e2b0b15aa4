// SPDX-License-Identifier: MPL-2.0

//! What a launch file's line needs.

use std::{fs, path::Path};

use droidrelay_camera::node::Node;
use droidrelay_wire::exit::{self, Failure};
use gst::prelude::*;

use super::{
    device, machine,
    report::{Report, failed, missing},
    server,
};
use crate::{
    file::{
        launchfile::LaunchFile,
        opening::{self, Opened},
        pipeline,
    },
    run::elements::Elements,
};

/// Where nothing better is known.
const DRIVER: &str = "look at the device and its driver (dmesg)";

/// Packages of Debian with elements that lines for robots have, by the beginnings of their names.
const PACKAGES: [(&str, &str); 9] = [
    ("gstreamer1.0-droidrelay", "mqttvalve rtmpauthsink"),
    ("gstreamer1.0-plugins-ugly", "x264enc"),
    ("gstreamer1.0-libcamera", "libcamerasrc"),
    (
        "gstreamer1.0-plugins-good",
        "v4l2 jpeg multifile splitmux matroska flv level autovideo",
    ),
    (
        "gstreamer1.0-plugins-bad",
        "h264parse h265parse va openh264 nvh264 tsdemux mpegts fdkaac voaac rtmp2",
    ),
    ("gstreamer1.0-libav", "avdec avenc"),
    ("gstreamer1.0-opencv", "motioncells"),
    ("gstreamer1.0-alsa", "alsa"),
    (
        "gstreamer1.0-plugins-base",
        "video audio decodebin uridecodebin",
    ),
];

/// Every element of the line that is not there, not only the first.
pub fn elements(file: &LaunchFile, report: &mut Report) {
    let factories = pipeline::factories(file);
    let not_found = |(name, _): &&(&str, _)| gst::ElementFactory::find(name).is_none();
    let lacking: Vec<_> = factories.iter().filter(not_found).collect();
    for (name, place) in &lacking {
        let mut packages = PACKAGES.iter();
        let package = packages.find(|(_, prefixes)| {
            let mut prefixes = prefixes.split_whitespace();
            prefixes.any(|prefix| name.starts_with(prefix))
        });
        let remedy = match package {
            _ if name.starts_with("nvv4l2") => {
                "it comes with NVIDIA's software for the Jetson".to_owned()
            }
            Some((package, _)) => {
                format!("install {package}; if it is, this machine lacks the hardware for it")
            }
            None => "look for a typing error, or install the plugin that has it".to_owned(),
        };
        let what = format!("element {name} at {place}");
        report.fail(missing(what, "not found", &remedy));
    }
    if lacking.is_empty() {
        let saw = format!("all {} of the line are there", factories.len());
        report.ok("elements", saw);
    }
}

/// The files that valves and sinks read: passwords, certificates, keys.
pub fn files(pipeline: &gst::Pipeline, report: &mut Report) {
    const PROPERTIES: [&str; 4] = ["password-file", "ca-file", "cert-file", "key-file"];
    let Elements { valves, sinks, .. } = Elements::of(pipeline);
    for element in valves.iter().chain(&sinks) {
        let named = |property: &&str| element.find_property(property).is_some();
        for property in PROPERTIES.into_iter().filter(named) {
            let path = element.property::<Option<String>>(property);
            let Some(path) = path.filter(|path| !path.is_empty()) else {
                continue;
            };
            let what = format!("{}: {property} {path}", element.name());
            let looked = fs::File::open(&path).map_err(|err| {
                let remedy = "write it, readable for the service's group droidrelay (mode 640); `sudo droidrelay enroll` writes all of them";
                failed(exit::CONFIG, &what, err, remedy)
            });
            if report.check(looked).is_some() {
                report.ok(what, "is there");
            }
        }
    }
}

/// Everything behind the elements of the line, in the order in which a person mends it: a network
/// first, the servers in it, and then the devices.
pub fn pipeline(file: &LaunchFile, pipeline: &gst::Pipeline, publish: bool, report: &mut Report) {
    servers(file, pipeline, publish, report);
    let all: Vec<gst::Element> = pipeline.iterate_recurse().into_iter().flatten().collect();
    for element in &all {
        let Some(factory) = element.factory() else {
            continue;
        };
        let class = factory.metadata("klass").unwrap_or_default();
        match factory.name().as_str() {
            "libcamerasrc" => machine::libcamera(report),
            "nvarguscamerasrc" => {
                report.check(machine::argus(report));
            }
            _ => {}
        }
        let opened = if class.contains("Source") {
            source(element, &factory, report)
        } else if class.contains("Encoder") && class.contains("Video") {
            let kind = match machine::is_hardware(&factory) {
                true => "hardware",
                false => "software",
            };
            open(
                element,
                &format!("encoder {}", factory.name()),
                kind,
                DRIVER,
                report,
            )
        } else {
            continue;
        };
        report.check(opened);
    }
}

/// Broker and server of each element that has one.
fn servers(file: &LaunchFile, pipeline: &gst::Pipeline, publish: bool, report: &mut Report) {
    let elements = Elements::of(pipeline);
    if elements.valves.is_empty() {
        report.note(
            "valve",
            "there is no mqttvalve in the line",
            "the stream is always on",
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|err| missing("network", err, ""));
    let Some(runtime) = report.check(runtime) else {
        return;
    };
    for valve in &elements.valves {
        report.check(runtime.block_on(server::broker(file, valve, report)));
    }
    for sink in &elements.sinks {
        let reached = report.check(runtime.block_on(server::rtmp(sink, report)));
        let what = format!("{}: credentials", sink.name());
        if reached.is_some() && publish {
            report.check(server::publish(&what, sink, report));
        } else if reached.is_some() {
            report.note(
                what,
                "not tried, since a stream that is being published could be cut off",
                "stop the robot and try with --publish",
            );
        }
    }
    // Names that are still being looked up hold nobody up.
    runtime.shutdown_background();
}

fn source(
    source: &gst::Element,
    factory: &gst::ElementFactory,
    report: &Report,
) -> Result<(), Failure> {
    let mut what = format!("source {}", factory.name());
    let device = source
        .find_property("device")
        .is_some_and(|spec| spec.value_type() == glib::Type::STRING)
        .then(|| source.property::<Option<String>>("device"))
        .flatten();
    if let Some(device) = &device {
        what = format!("{what} {device}");
    }
    let Some(device) = device.filter(|device| device.starts_with("/dev/")) else {
        return open(source, &what, "opens", DRIVER, report);
    };
    let device = Path::new(&device);
    match device::look(device, "", report)? {
        Some(node) if node != Node::Camera => {
            let remedy = "name another device: v4l2-ctl --list-devices shows them, and /dev/v4l/by-id/ has names that stay, the camera's with index0";
            return Err(missing(what, node.name(), remedy));
        }
        _ => {}
    }
    let holders = device::holders(device);
    let remedy = match holders.is_empty() {
        true => DRIVER.to_owned(),
        false => format!("{} has it: end that first", device::named(&holders)),
    };
    open(source, &what, "opens", &remedy, report)
}

/// Opens the device behind an element, and closes it again.
fn open(
    element: &gst::Element,
    what: &str,
    saw: &str,
    remedy: &str,
    report: &Report,
) -> Result<(), Failure> {
    match opening::open(element) {
        Opened::Well => {
            report.ok(what, saw);
            Ok(())
        }
        Opened::Lacks(text) => {
            let remedy = "set WIDTH, HEIGHT and FPS, or the caps behind the camera, to what it has";
            Err(failed(exit::DATA, what, text, remedy))
        }
        Opened::Not(error) => Err(missing(what, error, remedy)),
        Opened::Hangs(patience) => Err(missing(
            what,
            format_args!("opening it hangs for {} s", patience.as_secs()),
            "its driver hangs: unplug the device, or restart the machine",
        )),
    }
}
