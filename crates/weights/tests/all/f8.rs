//! Checkpoints of eight-bit floats as the hub has them: where the scales are, what they belong to, and what is refused.
use crate::common::{Dir, entry, file};
use anyfleet_tensor::{DType, HostWeight, WeightFormat, f8};
use anyfleet_weights::{MatrixSpec, ModelDir, VectorSpec};
use half::bf16;

/// Rows and columns of the matrix `m.weight`: no whole blocks.
const ROWS: usize = 200;
const COLS: usize = 300;

fn byte(row: usize, col: usize) -> u8 {
    ((row * 7 + col) % 126) as u8 | (((row + col) % 2) << 7) as u8
}

/// A tensor's name, dtype, shape and bytes.
type Tensor = (String, &'static str, Vec<usize>, Vec<u8>);

fn scales(name: &str, dtype: &'static str, shape: &[usize]) -> Tensor {
    let values = (0..shape.iter().product::<usize>()).map(|i| (i % 50 + 1) as f32 / 64.0);
    let bytes = match dtype {
        "BF16" => values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect(),
        _ => values.flat_map(f32::to_le_bytes).collect(),
    };
    (name.into(), dtype, shape.to_vec(), bytes)
}

/// A model directory with `m.weight` and these tensors.
fn dir(config: &str, mut tensors: Vec<Tensor>) -> (Dir, anyfleet_weights::Result<ModelDir>) {
    let bytes = (0..ROWS).flat_map(|row| (0..COLS).map(move |col| byte(row, col))).collect();
    tensors.push(("m.weight".into(), "F8_E4M3", vec![ROWS, COLS], bytes));
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len() as u64;
        data.extend_from_slice(&bytes);
        entries.push(entry(&name, dtype, &format!("{shape:?}"), start, data.len() as u64));
    }
    let dir = Dir::empty();
    dir.write("config.json", config.as_bytes());
    dir.write("model.safetensors", &file(&format!("{{{}}}", entries.join(",")), &data));
    let model = ModelDir::open(dir.path());
    (dir, model)
}

fn config(quantization: &str) -> String {
    format!(r#"{{"architectures": ["LlamaForCausalLM"], "quantization_config": {quantization}}}"#)
}

fn spec() -> MatrixSpec {
    MatrixSpec::new(vec![("m.weight".into(), ROWS)], COLS)
}

/// All rows as numbers.
fn rows(weight: &HostWeight<'_>) -> Vec<Vec<f32>> {
    let part = weight.parts[0];
    let row = |row| {
        let mut values = vec![0.0; weight.cols];
        part.row(row, weight.cols).values(&mut values);
        values
    };
    (0..part.rows).map(row).collect()
}

#[test]
fn scales_are_found_by_name_and_understood_by_shape() {
    let blocks = r#"{"quant_method": "fp8", "weight_block_size": [64, 100]}"#;
    let structure = r#"{"quant_method": "compressed-tensors", "format": "float-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 8, "block_structure": [64, 100]}}}}"#;
    for (quantization, name, dtype, shape, block) in [
        (r#"{"quant_method": "fp8"}"#, "m.weight_scale_inv", "F32", vec![2, 3], [128, 128]),
        (r#"{"quant_method": "fp8"}"#, "m.weight_scale_inv", "BF16", vec![], [ROWS, COLS]),
        (blocks, "m.weight_scale_inv", "BF16", vec![4, 3], [64, 100]),
        (structure, "m.weight_scale", "F32", vec![4, 3], [64, 100]),
        ("null", "m.weight_scale", "BF16", vec![ROWS, 1], [1, COLS]),
        ("null", "m.weight_scale", "F32", vec![ROWS], [1, COLS]),
        ("null", "m.weight_scale", "F32", vec![1], [ROWS, COLS]),
    ] {
        let (_dir, model) = dir(&config(quantization), vec![scales(name, dtype, &shape)]);
        let model = model.unwrap();
        model.check([("m.weight".into(), vec![ROWS, COLS])]).unwrap();
        let side = COLS.div_ceil(block[1]);
        let want = |row: usize, col: usize| {
            let scale = (row / block[0] * side + col / block[1]) % 50 + 1;
            bf16::from_f32(f8::decode(byte(row, col)) * scale as f32 / 64.0).to_f32()
        };
        let mut copy = Vec::new();
        // All of it, and what ranks take.
        let whole = rows(&model.matrix(&spec(), WeightFormat::F8, &mut copy).unwrap());
        let some = rows(
            &model.matrix(&spec().take_rows(std::slice::from_ref(&(70..150))), WeightFormat::F8, &mut copy).unwrap(),
        );
        let cut = rows(&model.matrix(&spec().take_cols(96..290), WeightFormat::F8, &mut copy).unwrap());
        for row in 0..ROWS {
            for col in 0..COLS {
                assert_eq!(whole[row][col], want(row, col), "{name} {shape:?}: {row}, {col}");
                assert!(!(70..150).contains(&row) || some[row - 70][col] == want(row, col), "{name}: {row}, {col}");
                assert!(!(96..290).contains(&col) || cut[row][col - 96] == want(row, col), "{name}: {row}, {col}");
            }
        }
    }
}

#[test]
fn scales_belong_to_their_tensors() {
    let others = ["m.input_scale", "attn.k_scale", "attn.v_scale"].map(|name| scales(name, "F32", &[1]));
    let own = [scales("m.weight_scale", "F32", &[ROWS, 1]), scales("norm.weight", "BF16", &[8])];
    let lost = [scales("other.weight_scale", "F32", &[400])];
    let (_dir, model) = dir(&config("null"), own.into_iter().chain(others).chain(lost).collect());
    let model = model.unwrap();
    assert_eq!(model.unused(["m.weight".into(), "norm.weight".into()]), ["other.weight_scale"]);
    assert_eq!((model.has_f8(), model.is_f8("m.weight"), model.is_f8("norm.weight")), (true, true, false));
    // Neither eight bits nor their scales are what the others are.
    let (_dir, model) =
        dir(&config("null"), vec![scales("m.weight_scale", "F32", &[ROWS, 1]), scales("norm.weight", "BF16", &[8])]);
    assert_eq!(model.unwrap().main_dtype(), Some(DType::BF16));
}

#[test]
fn what_cannot_be_read_is_refused() {
    let odd = |value: f32| ("m.weight_scale".to_string(), "F32", vec![1], value.to_le_bytes().to_vec());
    for (tensors, says) in [
        (vec![], &["m.weight has dtype F8_E4M3", "no scales", "m.weight_scale_inv", "m.weight_scale"][..]),
        (vec![scales("m.weight_scale", "F32", &[3, 3])], &["m.weight_scale has shape [3, 3]", "[2, 3] for blocks"]),
        (vec![scales("m.weight_scale", "F32", &[COLS, 1])], &["has shape [300, 1]", "[200, 1] for rows"]),
        (vec![("m.weight_scale".into(), "U8", vec![1], vec![127])], &["m.weight_scale has dtype U8"]),
        (vec![("m.weight_scale".into(), "F8_E4M3", vec![1, 1], vec![0])], &["scales are f32, bf16 or f16"]),
        (vec![odd(f32::NAN)], &["m.weight_scale has scales that are not finite"]),
        (vec![odd(f32::MAX)], &["not finite, or too large"]),
    ] {
        let (_dir, model) = dir(&config("null"), tensors);
        let model = model.unwrap();
        let checked = model.check([("m.weight".into(), vec![ROWS, COLS])]).unwrap_err().to_string();
        let loaded = model.matrix(&spec(), WeightFormat::F8, &mut Vec::new()).unwrap_err().to_string();
        assert_eq!(checked, loaded);
        assert!(says.iter().all(|part| checked.contains(part)) && !checked.contains('\n'), "{checked}");
    }
    // Vectors have no scales.
    let (_dir, model) = dir(&config("null"), vec![("norm.weight".into(), "F8_E4M3", vec![4], vec![0; 4])]);
    let norm = VectorSpec::new(vec![("norm.weight".into(), 4)]);
    let error = model.unwrap().vector(&norm).unwrap_err().to_string();
    assert!(error.contains("norm.weight has dtype F8_E4M3; f32, bf16 and f16 are supported"), "{error}");
    for block in ["[128]", "[0, 128]", "\"128\"", "[128, 128, 128]"] {
        let (_dir, model) = dir(&config(&format!(r#"{{"weight_block_size": {block}}}"#)), vec![]);
        let error = model.unwrap_err().to_string();
        assert!(error.contains("quantization_config.weight_block_size is"), "{error}");
    }
}
