//! A line plot with logarithmic axes, as SVG.

use std::fmt::Write;

/// What a plot shows.
pub(super) struct Plot {
    pub(super) title: String,
    /// What the horizontal axis counts.
    pub(super) across: String,
    pub(super) lines: Vec<Line>,
}

/// Points that belong together; all coordinates are positive.
pub(super) struct Line {
    pub(super) label: String,
    pub(super) points: Vec<(f64, f64)>,
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

/// A logarithmic axis over whole powers of ten.
struct Axis {
    from: i32,
    to: i32,
    begin: f64,
    end: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, begin: f64, end: f64) -> Self {
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        let (from, to) = match low <= high {
            true => (low.log10().floor() as i32, high.log10().ceil() as i32),
            false => (0, 1),
        };
        Self {
            from,
            to: to.max(from + 1),
            begin,
            end,
        }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value.log10() - f64::from(self.from)) / f64::from(self.to - self.from);
        self.begin + share * (self.end - self.begin)
    }

    fn ticks(&self) -> impl Iterator<Item = (f64, String)> {
        (self.from..=self.to).map(|power| {
            let value = 10f64.powi(power);
            let digits = usize::try_from(-power).unwrap_or(0);
            (self.place(value), format!("{value:.digits$}"))
        })
    }
}

impl Plot {
    /// The picture.
    pub(super) fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let x = Axis::over(points().map(|point| point.0), LEFT, WIDTH - RIGHT);
        let y = Axis::over(points().map(|point| point.1), HEIGHT - BOTTOM, TOP);
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
    for (x, y) in places {
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
        let axis = Axis::over([100.0, 10_000.0].into_iter(), 0.0, 200.0);
        assert_eq!(axis.place(100.0), 0.0);
        assert_eq!(axis.place(1_000.0), 100.0);
        assert_eq!(axis.place(10_000.0), 200.0);
        let labels: Vec<String> = axis.ticks().map(|(_, label)| label).collect();
        assert_eq!(labels, ["100", "1000", "10000"]);
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
            lines: vec![line("a < b"), line("c")],
        };
        let svg = plot.svg();
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(svg.contains("a &lt; b") && svg.contains(">0.1<"), "{svg}");
    }
}
