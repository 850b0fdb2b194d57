//! A line plot, as SVG.

use std::fmt::Write;

/// What a plot shows.
pub(crate) struct Plot {
    pub(crate) title: String,
    /// What the horizontal axis counts.
    pub(crate) across: String,
    pub(crate) scale: Scale,
    pub(crate) lines: Vec<Line>,
}

/// How both axes count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Over whole powers of ten; all coordinates are positive.
    Logarithmic,
    /// From zero; no coordinate is negative.
    Linear,
}

/// Points that belong together.
pub(crate) struct Line {
    pub(crate) label: String,
    pub(crate) points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 290.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Colours that people with any kind of sight tell apart (Okabe and Ito).
const COLOURS: [&str; 8] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f",
];

/// A line of more points than this is drawn without a mark at each.
const MARKED: usize = 50;

/// An axis, from tick to tick.
struct Axis {
    scale: Scale,
    /// Its ends: powers of ten, or multiples of `step`.
    from: i32,
    to: i32,
    step: f64,
    begin: f64,
    end: f64,
}

impl Axis {
    fn over(scale: Scale, values: impl Iterator<Item = f64>, begin: f64, end: f64) -> Self {
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        let (from, to, step) = match (scale, low <= high) {
            (Scale::Logarithmic, true) => {
                (low.log10().floor() as i32, high.log10().ceil() as i32, 1.0)
            }
            (Scale::Linear, true) if high > 0.0 => {
                let step = round_step(high);
                (0, (high / step).ceil() as i32, step)
            }
            _ => (0, 1, 1.0),
        };
        Self {
            scale,
            from,
            to: to.max(from + 1),
            step,
            begin,
            end,
        }
    }

    fn place(&self, value: f64) -> f64 {
        let at = match self.scale {
            Scale::Logarithmic => value.log10(),
            Scale::Linear => value / self.step,
        };
        let share = (at - f64::from(self.from)) / f64::from(self.to - self.from);
        self.begin + share * (self.end - self.begin)
    }

    fn ticks(&self) -> impl Iterator<Item = (f64, String)> {
        (self.from..=self.to).map(|tick| {
            let (value, power) = match self.scale {
                Scale::Logarithmic => (10f64.powi(tick), tick),
                Scale::Linear => (
                    f64::from(tick) * self.step,
                    self.step.log10().floor() as i32,
                ),
            };
            let digits = usize::try_from(-power).unwrap_or(0);
            (self.place(value), format!("{value:.digits$}"))
        })
    }
}

/// The smallest of 1, 2, 5, 10, 20 and so on of which ten reach `high`.
fn round_step(high: f64) -> f64 {
    let power = 10f64.powf((high / 10.0).log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|step| step * power);
    let enough = steps.into_iter().find(|step| step * 10.0 >= high);
    enough.unwrap_or(10.0 * power)
}

impl Plot {
    /// The picture.
    pub(crate) fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let x = Axis::over(
            self.scale,
            points().map(|point| point.0),
            LEFT,
            WIDTH - RIGHT,
        );
        let y = Axis::over(
            self.scale,
            points().map(|point| point.1),
            HEIGHT - BOTTOM,
            TOP,
        );
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}</text>\n",
            escape(&self.title)
        );
        self.grid(&mut svg, &x, &y);
        for (n, line) in self.lines.iter().enumerate() {
            draw(&mut svg, n, line, &x, &y);
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn grid(&self, svg: &mut String, x: &Axis, y: &Axis) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (at, label) in x.ticks() {
            element(
                svg,
                format_args!(
                    "<path d=\"M{at:.1} {TOP}V{bottom}\" stroke=\"#ddd\"/>\
                     <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
                    bottom + 18.0
                ),
            );
        }
        for (at, label) in y.ticks() {
            element(
                svg,
                format_args!(
                    "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#ddd\"/>\
                     <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                    LEFT - 8.0,
                    at + 4.0
                ),
            );
        }
        element(
            svg,
            format_args!(
                "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                (LEFT + right) / 2.0,
                HEIGHT - 12.0,
                escape(&self.across)
            ),
        );
    }
}

fn draw(svg: &mut String, n: usize, line: &Line, x: &Axis, y: &Axis) {
    let colour = COLOURS[n % COLOURS.len()];
    let places = line
        .points
        .iter()
        .map(|point| (x.place(point.0), y.place(point.1)));
    let path: Vec<String> = places
        .clone()
        .map(|(x, y)| format!("{x:.1},{y:.1}"))
        .collect();
    element(
        svg,
        format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        ),
    );
    let marked = line.points.len() <= MARKED;
    for (x, y) in places.filter(|_| marked) {
        element(
            svg,
            format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"),
        );
    }
    let (at, height) = (WIDTH - RIGHT + 16.0, TOP + 10.0 + 22.0 * n as f64);
    element(
        svg,
        format_args!(
            "<path d=\"M{at} {height}h18\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{}\" y=\"{}\">{}</text>",
            at + 24.0,
            height + 4.0,
            escape(&line.label)
        ),
    );
}

fn element(svg: &mut String, element: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(svg, "{element}");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_times_as_much_is_equally_far_wherever_it_begins() {
        let axis = Axis::over(
            Scale::Logarithmic,
            [100.0, 10_000.0].into_iter(),
            0.0,
            200.0,
        );
        assert_eq!(axis.place(100.0), 0.0);
        assert_eq!(axis.place(1_000.0), 100.0);
        assert_eq!(axis.place(10_000.0), 200.0);
        let labels: Vec<String> = axis.ticks().map(|(_, label)| label).collect();
        assert_eq!(labels, ["100", "1000", "10000"]);
    }

    #[test]
    fn a_linear_axis_begins_at_zero_and_ends_at_a_round_number() {
        let axis = Axis::over(Scale::Linear, [12.0, 27.0].into_iter(), 0.0, 300.0);
        assert_eq!((axis.place(0.0), axis.place(15.0)), (0.0, 150.0));
        let labels: Vec<String> = axis.ticks().map(|(_, label)| label).collect();
        assert_eq!(labels, ["0", "5", "10", "15", "20", "25", "30"]);
        let axis = Axis::over(Scale::Linear, [0.9].into_iter(), 0.0, 300.0);
        let last = axis.ticks().last().map(|(_, label)| label);
        assert_eq!(last.as_deref(), Some("0.9"));
    }

    #[test]
    fn every_line_is_drawn_and_named() {
        let line = |label: &str| Line {
            label: label.to_owned(),
            points: vec![(100.0, 0.5), (1_000.0, 0.4)],
        };
        let plot = Plot {
            title: "cost".to_owned(),
            across: "runs".to_owned(),
            scale: Scale::Logarithmic,
            lines: vec![line("a < b"), line("c")],
        };
        let svg = plot.svg();
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(svg.contains("a &lt; b") && svg.contains(">0.1<"), "{svg}");
    }
}
