//! A line chart with logarithmic axes, as SVG.

use std::fmt::Write;

/// A line: its name and its points.
pub(crate) type Line = (String, Vec<(f64, f64)>);

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
const COLOURS: [&str; 5] = ["#0b6e99", "#d9730d", "#6940a5", "#448361", "#ad1a72"];

/// Draws the lines; the labels name what the axes are and their units.
pub(crate) fn draw(title: &str, (x_label, y_label): (&str, &str), lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let x = Axis::over(points().map(|point| point.0), LEFT, WIDTH - RIGHT);
    let y = Axis::over(points().map(|point| point.1), HEIGHT - BOTTOM, TOP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\" role=\"img\" aria-label=\"{title}\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\" font-weight=\"bold\">{title}</text>\n"
    );
    let mut put = |line: String| writeln!(svg, "{line}").expect("a string takes all");
    for (value, at) in x.marks() {
        put(format!(
            "<path d=\"M{at:.1} {TOP}V{:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 18.0,
            short(value)
        ));
    }
    for (value, at) in y.marks() {
        put(format!(
            "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.0,
            short(value)
        ));
    }
    let middle = f64::midpoint(LEFT, WIDTH - RIGHT);
    put(format!(
        "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{x_label}</text>\
         <text transform=\"translate(18 {}) rotate(-90)\" text-anchor=\"middle\">{y_label}</text>",
        HEIGHT - 12.0,
        HEIGHT / 2.0
    ));
    for (index, (name, points)) in lines.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let places: Vec<(f64, f64)> =
            points.iter().map(|point| (x.at(point.0), y.at(point.1))).collect();
        let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        put(format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        ));
        for (x, y) in &places {
            put(format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>"));
        }
        if let Some((x, y)) = places.last() {
            let (x, y) = (x + 8.0, y + 4.0);
            put(format!("<text x=\"{x:.1}\" y=\"{y:.1}\" fill=\"{colour}\">{name}</text>"));
        }
    }
    svg + "</svg>\n"
}

/// Whole powers of ten from below the least value to above the greatest.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (low, high) = values
            .filter(|value| *value > 0.0)
            .fold((f64::MAX, f64::MIN_POSITIVE), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        let low = low.log10().floor();
        Axis { low, high: high.log10().ceil().max(low + 1.0), from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let share = (value.max(f64::MIN_POSITIVE).log10() - self.low) / (self.high - self.low);
        self.from + share * (self.to - self.from)
    }

    fn marks(&self) -> impl Iterator<Item = (f64, f64)> {
        let steps = (self.high - self.low).round();
        std::iter::successors(Some(0.0), move |step| (step + 1.0 <= steps).then_some(step + 1.0))
            .map(|step| 10_f64.powf(self.low + step))
            .map(|value| (value, self.at(value)))
    }
}

fn short(value: f64) -> String {
    match value {
        ..1.0 => format!("{value}"),
        1.0..1e3 => format!("{value:.0}"),
        1e3..1e6 => format!("{:.0}k", value / 1e3),
        1e6..1e9 => format!("{:.0}M", value / 1e6),
        _ => format!("{:.0}G", value / 1e9),
    }
}
