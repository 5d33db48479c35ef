//! Bars, with a line from the least to the most where there were several runs.

use std::fmt::Write as _;

/// What stands together: a name, and its bars.
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) bars: Vec<Bar>,
}

pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

const WIDTH: f64 = 820.0;
const LABELS: f64 = 200.0;
const VALUES: f64 = 70.0;
const BAR: f64 = 16.0;
const GAP: f64 = 14.0;
const TITLE: f64 = 34.0;
/// Legible for those who see few colours; by the order in which names first come.
const COLOURS: [&str; 8] = ["#888888", "#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#0072b2", "#f0e442"];

/// A chart as SVG: horizontal bars from zero, all of one scale.
pub(crate) fn bars(title: &str, groups: &[Group]) -> String {
    let bars = || groups.iter().flat_map(|group| &group.bars);
    let mut names: Vec<&str> = Vec::new();
    for bar in bars() {
        if !names.contains(&bar.name.as_str()) {
            names.push(&bar.name);
        }
    }
    let most = bars().map(|bar| bar.most).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - LABELS - VALUES) / most;
    let height = TITLE + groups.iter().map(|group| group.bars.len() as f64 * BAR + GAP).sum::<f64>();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"14\">{}</text>\n",
        escaped(title)
    );
    let mut top = TITLE;
    for group in groups {
        let _ = writeln!(svg, "<text x=\"10\" y=\"{}\">{}</text>", top + BAR - 4.0, escaped(&group.name));
        for bar in &group.bars {
            let colour = names.iter().position(|name| *name == bar.name).unwrap_or(0) % COLOURS.len();
            let (middle, end) = (top + BAR / 2.0, LABELS + bar.most * scale + 6.0);
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n\
                 <rect x=\"{LABELS}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"/>\n\
                 <line x1=\"{:.1}\" y1=\"{middle}\" x2=\"{:.1}\" y2=\"{middle}\" stroke=\"#000000\"/>\n\
                 <text x=\"{end:.1}\" y=\"{}\">{:.2}</text>",
                LABELS - 6.0,
                top + BAR - 4.0,
                escaped(&bar.name),
                top + 1.0,
                bar.value * scale,
                BAR - 2.0,
                COLOURS[colour],
                LABELS + bar.least * scale,
                LABELS + bar.most * scale,
                top + BAR - 4.0,
                bar.value,
            );
            top += BAR;
        }
        top += GAP;
    }
    svg + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
