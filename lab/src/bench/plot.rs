// SPDX-License-Identifier: MPL-2.0

//! Measured values as dots on a line for each way, with a bar at the median.

use std::fmt::Write as _;

const WIDTH: f64 = 900.0;
/// Of the names on the left.
const LEFT: f64 = 310.0;
const RIGHT: f64 = WIDTH - 90.0;
const TOP: f64 = 50.0;
const ROW: f64 = 26.0;

/// One way and what was measured, sorted.
pub type Strip = (String, Vec<f64>);

/// The middle one of sorted values.
pub fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The axis: from where to where, and whether each step is ten times the one before.
struct Axis {
    least: f64,
    most: f64,
    is_logarithmic: bool,
}

impl Axis {
    /// Logarithmic where the values differ by more than 20 times.
    fn of(strips: &[Strip]) -> Self {
        let all = || strips.iter().flat_map(|(_, values)| values.iter().copied());
        let least = all().fold(f64::INFINITY, f64::min).max(1e-3);
        let most = all().fold(least, f64::max);
        if most > 20.0 * least {
            return Axis {
                least: 10f64.powf(least.log10().floor()),
                most: 10f64.powf(most.log10().ceil()),
                is_logarithmic: true,
            };
        }
        Axis {
            least: 0.0,
            most: most * 1.05,
            is_logarithmic: false,
        }
    }

    fn x(&self, value: f64) -> f64 {
        let part = match self.is_logarithmic {
            true => (value.max(self.least) / self.least).ln() / (self.most / self.least).ln(),
            false => value / self.most,
        };
        LEFT + (RIGHT - LEFT) * part
    }

    fn ticks(&self) -> Vec<f64> {
        if self.is_logarithmic {
            let decades = (self.most / self.least).log10().round() as i32;
            return (0..=decades).map(|n| self.least * 10f64.powi(n)).collect();
        }
        let rough = self.most / 5.0;
        let unit = 10f64.powf(rough.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * unit);
        let step = steps.into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        (0..=(self.most / step) as i32)
            .map(|n| f64::from(n) * step)
            .collect()
    }
}

/// A plot as SVG.
pub fn strips(title: &str, unit: &str, strips: &[Strip]) -> String {
    let axis = Axis::of(strips);
    let bottom = TOP + ROW * strips.len() as f64;
    let height = bottom + 30.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"20\" font-weight=\"bold\">{title}</text>\n"
    );
    // Writing to a string does not fail, here and below.
    for tick in axis.ticks() {
        let x = axis.x(tick);
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} {:.1}V{bottom}\" stroke=\"#ccc\" stroke-width=\"0.5\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"10\">{tick} {unit}</text>",
            TOP - 14.0,
            bottom + 16.0
        );
    }
    for (n, (name, values)) in strips.iter().enumerate() {
        let y = TOP + ROW * n as f64;
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
            LEFT - 10.0,
            y + 4.0
        );
        for value in values {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"#0072b2\" fill-opacity=\"0.4\"/>",
                axis.x(*value)
            );
        }
        let median = median(values);
        let x = axis.x(median);
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} {:.1}v16\" stroke=\"#d55e00\" stroke-width=\"2\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" fill=\"#d55e00\">{}</text>",
            y - 8.0,
            RIGHT + 12.0,
            y + 4.0,
            figure(median)
        );
    }
    svg + "</svg>\n"
}

/// With as many digits as say something.
pub fn figure(value: f64) -> String {
    let digits = match value.abs() {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_a_dot_within_the_axis() {
        for values in [vec![1.0, 2.0, 3.0], vec![0.5, 80.0, 20_000.0]] {
            let strips_ = [("a".to_owned(), values.clone())];
            let axis = Axis::of(&strips_);
            for value in &values {
                assert!((LEFT..=RIGHT).contains(&axis.x(*value)), "{value}");
            }
            assert!(axis.ticks().len() >= 3, "{:?}", axis.ticks());
            let svg = strips("t", "ms", &strips_);
            assert_eq!(svg.matches("<circle").count(), 3);
        }
    }
}
