//! A page with the results of `block_swap_performance`: a table, and plots over the number of blocks.
//!
//! It is whole in itself: nothing is fetched when it is opened.

use std::error::Error;

use minijinja::{AutoEscape, Environment, context};
use serde::Serialize;

use crate::{Measured, mb};

/// What the columns of the table are called.
pub(crate) const HEADINGS: [&str; 9] = [
    "blocks swapped",
    "device MB",
    "saved MB",
    "saved %",
    "process MB",
    "load s",
    "pass s",
    "pass more %",
    "moved MB",
];

/// A row of the table.
pub(crate) fn cells(measured: &Measured) -> [String; HEADINGS.len()] {
    let fixed = |number: Option<f64>, digits: i32| {
        // What is rounded to nothing has no sign.
        let unit = 10f64.powi(digits);
        let rounded = number.map(|number| (number * unit).round() / unit + 0.0);
        let digits = digits.unsigned_abs() as usize;
        rounded.map_or_else(|| "-".to_owned(), |number| format!("{number:.digits$}"))
    };
    let memory = &measured.memory_with_swap;
    [
        measured.blocks_to_swap.to_string(),
        fixed(Some(memory.gpu_increase_mb), 1),
        fixed(Some(measured.gpu_savings_mb), 1),
        fixed(measured.gpu_savings_percent, 1),
        fixed(memory.cpu_increase_mb, 1),
        fixed(Some(memory.load_time_seconds), 3),
        fixed(Some(measured.pass_median_with_swap_s), 4),
        fixed(measured.pass_time_difference_percent, 1),
        fixed(Some(mb(measured.wire_bytes_per_pass)), 1),
    ]
}

/// Pixels of a plot, and of the margin for its labels.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 240.0;
const MARGIN: f64 = 24.0;

/// Bars over the number of blocks, and a line for what it is without swapping.
#[derive(Debug, Serialize)]
struct Plot {
    title: &'static str,
    bars: Vec<Bar>,
    level: Level,
}

#[derive(Debug, Serialize)]
struct Bar {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
    /// Where its labels stand in the middle.
    middle: f64,
    blocks: u64,
    value: String,
}

#[derive(Debug, Serialize)]
struct Level {
    y: f64,
    value: String,
}

impl Plot {
    fn new(
        title: &'static str,
        digits: usize,
        results: &[Measured],
        value: impl Fn(&Measured) -> f64,
        level: f64,
    ) -> Self {
        let values: Vec<f64> = results.iter().map(&value).collect();
        let most = values.iter().copied().fold(level, f64::max);
        let room = HEIGHT - 2.0 * MARGIN;
        let height = |value: f64| {
            if most > 0.0 {
                room * value.max(0.0) / most
            } else {
                0.0
            }
        };
        let step = (WIDTH - 2.0 * MARGIN) / values.len().max(1) as f64;
        let bars = values
            .iter()
            .zip(results)
            .enumerate()
            .map(|(index, (&value, measured))| {
                let x = MARGIN + step * (index as f64 + 0.15);
                Bar {
                    x,
                    y: HEIGHT - MARGIN - height(value),
                    width: step * 0.7,
                    height: height(value),
                    middle: x + step * 0.35,
                    blocks: measured.blocks_to_swap,
                    value: format!("{value:.digits$}"),
                }
            });
        Self {
            title,
            bars: bars.collect(),
            level: Level {
                y: HEIGHT - MARGIN - height(level),
                value: format!("{level:.digits$}"),
            },
        }
    }
}

/// The page of `results`, of which there is at least one.
pub(crate) fn render(results: &[Measured]) -> Result<String, Box<dyn Error>> {
    let first = results.first().ok_or("nothing was measured")?;
    let memory = &first.memory_no_swap;
    let plots = [
        Plot::new(
            "Device memory in MB",
            0,
            results,
            |measured| measured.memory_with_swap.gpu_increase_mb,
            memory.gpu_increase_mb,
        ),
        Plot::new(
            "Seconds of a pass, median",
            4,
            results,
            |measured| measured.pass_median_with_swap_s,
            first.pass_median_no_swap_s,
        ),
        Plot::new(
            "MB moved to the device in a pass",
            0,
            results,
            |measured| mb(measured.wire_bytes_per_pass),
            0.0,
        ),
    ];
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let page = environment.render_str(
        include_str!("page.html"),
        context! {
            first,
            plots,
            width => WIDTH,
            height => HEIGHT,
            margin => MARGIN,
            headings => HEADINGS,
            rows => results.iter().map(cells).collect::<Vec<_>>(),
        },
    )?;
    Ok(page)
}
