import sys, kernels.triton_aot as a
from kernels.triton_aot import *
for arch in sys.argv[1].split(","):
  for kind in sys.argv[2].split(","):
    for case, l in launches(kind, ARCHITECTURES[arch]):
        if len(sys.argv)>3 and case not in sys.argv[3].split(","): continue
        try:
            r=measure(case,l,kind,ARCHITECTURES[arch]); print(arch,kind,case,r.tile,r.warps,r.stages,"regs",r.registers,"spill",r.spilled,"sm",r.shared,r.matrix,"wide",r.wide_loads,"blk",r.blocks,r.seconds,r.short,flush=True)
        except Exception as e: print(arch,kind,case,l.arguments.get("BLOCK_M"),type(e),str(e)[:300],flush=True)
