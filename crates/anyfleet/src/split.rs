//! Several devices by name.
use crate::DeviceSpec;
use std::fmt;
use std::str::FromStr;

/// Devices that run one model together: `,` divides its layers into stages, one after another, and `+` joins devices that
/// share each layer of a stage (tensor parallelism). `cuda:0+cuda:1,cpu` is a stage on two GPUs and one on the CPU.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Split(Vec<Vec<DeviceSpec>>);

impl Split {
    /// The stages, and the devices of each.
    pub fn stages(&self) -> &[Vec<DeviceSpec>] {
        &self.0
    }

    /// True for names of several devices.
    pub(crate) fn is_meant(name: &str) -> bool {
        name.contains([',', '+'])
    }

    /// All devices, a stage after the other.
    pub(crate) fn devices(&self) -> impl Iterator<Item = &DeviceSpec> {
        self.0.iter().flatten()
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |names: Vec<String>, with: &str| names.join(with);
        let stage = |devices: &Vec<DeviceSpec>| join(devices.iter().map(DeviceSpec::to_string).collect(), "+");
        f.write_str(&join(self.0.iter().map(stage).collect(), ","))
    }
}

impl FromStr for Split {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let device = |name: &str| match name {
            "" => Err(format!(
                "device \"{text}\" lacks a name beside a comma or plus; use for example cpu,wgpu:0 for layers one after \
                 another or cuda:0+cuda:1 for shared layers"
            )),
            "auto" => Err(format!("device \"{text}\" has auto in a list; name each device, see --list-devices")),
            name => name.parse(),
        };
        let stage = |names: &str| names.split('+').map(device).collect();
        text.split(',').map(stage).collect::<Result<_, _>>().map(Split)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_several_devices_come_back() {
        for name in ["cpu+cpu", "cpu,wgpu:llvmpipe", "wgpu:0+wgpu:1,cpu", "cpu,cpu,cpu"] {
            let spec: DeviceSpec = name.parse().unwrap();
            assert_eq!(spec.to_string(), name);
            assert!(matches!(spec, DeviceSpec::Split(_)));
        }
        let DeviceSpec::Split(split) = "cpu+wgpu,cpu".parse().unwrap() else { panic!("one device") };
        assert_eq!(split.stages(), [vec![DeviceSpec::Cpu, DeviceSpec::Wgpu(None)], vec![DeviceSpec::Cpu]]);
        assert_eq!("cpu".parse(), Ok(DeviceSpec::Cpu));
    }

    #[test]
    fn nonsense_is_refused_in_a_line() {
        for (name, words) in [
            ("cpu,", "lacks a name"),
            (",cpu", "lacks a name"),
            ("cpu++cpu", "lacks a name"),
            ("+", "lacks a name"),
            ("cpu,auto", "auto in a list"),
            ("cpu+nonsense", "device \"nonsense\" does not exist"),
            ("cpu, cpu", "device \" cpu\" does not exist"),
        ] {
            let error = name.parse::<DeviceSpec>().unwrap_err();
            assert!(error.contains(words) && !error.contains('\n'), "{name}: {error}");
        }
    }
}
