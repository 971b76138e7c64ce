import pytest, torch
from vaefix.convert.repair.plant import plant
from vaefix.convert.repair.rules import constraints
from vaefix.convert.repair.identity import check_identity
@pytest.mark.parametrize("name",["vae_decoder","vae_encoder","text_encoder","unet","t5_encoder","sd3_transformer"])
def test_x(name,request):
    import time
    n=request.getfixturevalue(name)
    t=time.time(); r,w=n.measured(); 
    c=constraints(n.program)
    print(name,"values",len(c.values),"free",len(set(c.values)-c.fixed),"ops",len(n.program.ops), time.time()-t)
    for s in range(3):
        t=time.time(); p=plant(n.program,r,s); t=time.time()-t
        check_identity(n.program,p,n.weights,n.sample(1))
        print(len(p.parameters),len(p.literals),max(o.absmax_after for o in p.ops),"%.2fs"%t)
    from vaefix.convert.repair.solve import solve
    t=time.time(); m=n.scaled(p); f=solve(m.program,*m.measured()); print("solve",len(f.parameters),f.keep_fp32[:5],time.time()-t, solve(n.program,r,w).is_empty)
    check_identity(m.program,f,m.weights,m.sample(1))
