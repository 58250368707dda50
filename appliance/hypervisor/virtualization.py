"""Turning a machine made for KVM into an emulated one, and giving it other memory or processors. Pure.

The rule: the guest gets the best processor that the emulator has, as it may need instructions of the one it was
installed on; what only KVM can do is taken out and named.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

from appliance.hypervisor.domain_xml import memory_bytes, remove_all

KIB = 1024
_KVM_TIMERS = ("kvmclock", "hypervclock")
_KVM_FEATURES = ("kvm", "hyperv", "pmu", "pvspinlock", "xen")


def use_tcg(root: ET.Element, warnings: list[str]) -> None:
    root.set("type", "qemu")
    warnings.append("the machine was made for KVM and is emulated (TCG) here: it runs several times slower")
    _emulated_processor(root, warnings)
    features = root.find("features")
    if features is not None:
        gone = [tag for tag in _KVM_FEATURES if features.find(tag) is not None]
        for tag in gone:
            remove_all(features, tag)
        ioapic = features.find("ioapic")
        if ioapic is not None:
            ioapic.attrib.pop("driver", None)
            if not ioapic.attrib:
                features.remove(ioapic)
        if gone:
            warnings.append(f"features that only KVM has were left out: {', '.join(gone)}")
    clock = root.find("clock")
    if clock is not None:
        for timer in clock.findall("timer"):
            if timer.get("name") in _KVM_TIMERS:
                clock.remove(timer)
    for card in root.findall("devices/interface"):
        driver = card.find("driver")
        if driver is not None and driver.get("name") == "vhost":
            driver.attrib.pop("name")


def _emulated_processor(root: ET.Element, warnings: list[str]) -> None:
    cpu = root.find("cpu")
    if cpu is None:
        return
    wanted = cpu.findtext("model") or cpu.get("mode") or ""
    if wanted:
        warnings.append(f"its processor ({wanted}) is replaced by the best that the emulator has")
    kept = [child for child in cpu if child.tag in ("topology", "numa")]
    # SMT is not emulated by every model, but a topology that libvirt accepted before stays valid.
    cpu.attrib.clear()
    for child in list(cpu):
        cpu.remove(child)
    cpu.set("mode", "maximum")
    cpu.set("check", "none")
    cpu.extend(kept)


def override_memory(root: ET.Element, wanted_bytes: int, warnings: list[str]) -> None:
    before = memory_bytes(root.find("memory"))
    for tag in ("memory", "currentMemory"):
        element = root.find(tag)
        if element is None:
            continue
        element.attrib.clear()
        element.set("unit", "KiB")
        element.text = str(-(-wanted_bytes // KIB))
    remove_all(root, "maxMemory")
    devices = root.find("devices")
    if devices is not None:
        remove_all(devices, "memory")
    _drop_numa(root, warnings)
    warnings.append(f"memory is {wanted_bytes >> 20} MiB instead of {before >> 20} MiB")


def override_cpus(root: ET.Element, wanted: int, warnings: list[str]) -> None:
    vcpu = root.find("vcpu")
    before = vcpu.text if vcpu is not None else "1"
    if vcpu is None:
        vcpu = ET.SubElement(root, "vcpu")
    vcpu.attrib.clear()
    vcpu.text = str(wanted)
    remove_all(root, "vcpus")
    cpu = root.find("cpu")
    if cpu is not None:
        remove_all(cpu, "topology")  # sockets × cores × threads would have to equal the number
    _drop_numa(root, warnings)
    warnings.append(f"it has {wanted} processors instead of {before}")


def _drop_numa(root: ET.Element, warnings: list[str]) -> None:
    cpu = root.find("cpu")
    if cpu is not None and cpu.find("numa") is not None:
        remove_all(cpu, "numa")
        warnings.append("its NUMA layout was left out")
