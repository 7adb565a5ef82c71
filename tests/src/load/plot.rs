//! How figures grow: lines over two logarithmic axes, as an SVG that needs nothing else.

use std::fmt::Write as _;

use super::latency::short;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
/// Room for the labels around the lines.
const MARGIN: f64 = 64.0;
/// Colours that are told apart without red against green, one line each.
const COLOURS: [&str; 6] = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00",
];

/// One line.
#[derive(Clone, Debug)]
pub struct Line {
    /// What it shows, with its unit.
    pub name: String,
    /// Points with both numbers above 0; others are left out.
    pub points: Vec<(f64, f64)>,
}

impl Line {
    /// A figure at each length that was measured.
    pub fn grown<G>(
        name: String,
        growth: &[G],
        length: fn(&G) -> f64,
        figure: fn(&G) -> f64,
    ) -> Self {
        let points = growth.iter().map(|at| (length(at), figure(at))).collect();
        Self { name, points }
    }
}

/// Powers of ten around values.
fn decades(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (least, most) = values.fold(None, |range: Option<(f64, f64)>, value| {
        let (least, most) = range.unwrap_or((value, value));
        Some((least.min(value), most.max(value)))
    })?;
    let (low, high) = (least.log10().floor(), most.log10().ceil());
    Some((low, if high > low { high } else { low + 1.0 }))
}

/// The picture; `None` without a single point.
#[must_use]
pub fn svg(title: &str, x_name: &str, lines: &[Line]) -> Option<String> {
    let shown = |line: &Line| -> Vec<(f64, f64)> {
        let points = line.points.iter().copied();
        points.filter(|(x, y)| *x > 0.0 && *y > 0.0).collect()
    };
    let all: Vec<(f64, f64)> = lines.iter().flat_map(shown).collect();
    let xs = decades(all.iter().map(|point| point.0))?;
    let ys = decades(all.iter().map(|point| point.1))?;
    let at = |value: f64, (low, high): (f64, f64), length: f64| {
        (value.log10() - low) / (high - low) * length
    };
    let x_of = |x| MARGIN + at(x, xs, WIDTH - 2.0 * MARGIN);
    let y_of = |y| HEIGHT - MARGIN - at(y, ys, HEIGHT - 2.0 * MARGIN);
    let mut picture = head(title, x_name);
    for (range, is_x) in [(xs, true), (ys, false)] {
        let mut exponent = range.0;
        while exponent <= range.1 {
            let value = 10_f64.powf(exponent);
            let place = if is_x { x_of(value) } else { y_of(value) };
            picture.push_str(&grid_line(place, value, is_x));
            exponent += 1.0;
        }
    }
    for (number, (line, colour)) in lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let points: Vec<(f64, f64)> = shown(line)
            .into_iter()
            .map(|(x, y)| (x_of(x), y_of(y)))
            .collect();
        picture.push_str(&drawn(&points, colour));
        let below_title = 40.0 + 15.0 * f64::from(u8::try_from(number).unwrap_or(u8::MAX));
        let left = MARGIN + 10.0;
        add(
            &mut picture,
            format_args!(
                "<text x=\"{left}\" y=\"{below_title}\" fill=\"{colour}\">{}</text>\n",
                escaped(&line.name)
            ),
        );
    }
    picture.push_str("</svg>\n");
    Some(picture)
}

fn head(title: &str, x_name: &str) -> String {
    let mut text = String::new();
    add(
        &mut text,
        format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
             <text x=\"{}\" y=\"20\" text-anchor=\"middle\" font-size=\"14\">{}</text>\n\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
            WIDTH / 2.0,
            escaped(title),
            WIDTH / 2.0,
            HEIGHT - 20.0,
            escaped(x_name)
        ),
    );
    text
}

fn grid_line(place: f64, value: f64, is_x: bool) -> String {
    let (near, far) = (
        MARGIN,
        if is_x {
            HEIGHT - MARGIN
        } else {
            WIDTH - MARGIN
        },
    );
    let label = if value >= 1.0 {
        format!("{value:.0}")
    } else {
        short(value)
    };
    let mut text = String::new();
    if is_x {
        add(
            &mut text,
            format_args!(
                "<line x1=\"{place:.1}\" y1=\"{near}\" x2=\"{place:.1}\" y2=\"{far}\" stroke=\"#ddd\"/>\n\
                 <text x=\"{place:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>\n",
                far + 16.0
            ),
        );
    } else {
        add(
            &mut text,
            format_args!(
                "<line x1=\"{near}\" y1=\"{place:.1}\" x2=\"{far}\" y2=\"{place:.1}\" stroke=\"#ddd\"/>\n\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>\n",
                near - 6.0,
                place + 4.0
            ),
        );
    }
    text
}

fn drawn(points: &[(f64, f64)], colour: &str) -> String {
    let path: Vec<String> = points
        .iter()
        .map(|(x, y)| format!("{x:.1},{y:.1}"))
        .collect();
    let mut text = String::new();
    add(
        &mut text,
        format_args!(
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>\n",
            path.join(" ")
        ),
    );
    for (x, y) in points {
        add(
            &mut text,
            format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>\n"),
        );
    }
    text
}

fn add(text: &mut String, more: std::fmt::Arguments<'_>) {
    text.write_fmt(more)
        .expect("writing to a string does not fail");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_inside_and_more_is_higher() {
        let line = Line {
            name: "p99 < all, ms".to_owned(),
            points: vec![(1000.0, 0.5), (100_000.0, 50.0), (10.0, 0.0)],
        };
        let picture = svg("Growth", "rows", &[line]).unwrap();
        assert!(picture.contains("p99 &lt; all"), "{picture}");
        let points = picture.split("points=\"").nth(1).unwrap();
        let points = points.split('"').next().unwrap();
        let points: Vec<(f64, f64)> = points
            .split(' ')
            .map(|point| {
                let (x, y) = point.split_once(',').unwrap();
                (x.parse().unwrap(), y.parse().unwrap())
            })
            .collect();
        // What has no place on a logarithmic axis is left out.
        let [first, second] = points[..] else {
            panic!("{points:?}");
        };
        assert!(first.0 < second.0 && first.1 > second.1, "{points:?}");
        for (x, y) in points {
            assert!((MARGIN..=WIDTH - MARGIN).contains(&x), "{x}");
            assert!((MARGIN..=HEIGHT - MARGIN).contains(&y), "{y}");
        }
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        assert_eq!(svg("Growth", "rows", &[]), None);
    }
}
