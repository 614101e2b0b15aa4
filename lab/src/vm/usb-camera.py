#!/usr/bin/env python3
# SPDX-License-Identifier: MPL-2.0
"""A USB camera (UVC 1.1, bulk; MJPEG, YUYV, H.264) for qemu's usb-redir: usb-camera.py PORT CTLSOCK DIR (port 0: any)
DIR holds its pictures: mjWxH-NNN.jpg, yuyWxH-NNN.raw, h264-WxH-NNN.au (one access unit each, byte-stream), as many as you like.
Control by datagrams of text on CTLSOCK (unix): unplug, plug, freeze, thaw, eproto N, stall-commit on|off, hang on|off, status.
Its output says STREAM ON and STREAM OFF: the camera's light."""
import os, socket, struct, sys, threading, time, glob, collections, queue
PORT = int(sys.argv[1]); CTL = sys.argv[2]; DIR = sys.argv[3]
def log(*a): print(time.strftime('%H:%M:%S') + ('.%03d' % (time.time()%1*1000)), *a, flush=True)

FI = [333333, 666666, 1000000, 2000000]
def ivs(): return b''.join(struct.pack('<I', i) for i in FI)
MJ = [(640,480),(1280,720),(320,240)]
YU = [(640,480),(320,240),(160,120)]
H2 = [(640,480),(1280,720),(320,240)]
def guid(f): return f + bytes.fromhex('0000100080 0000AA00389B71'.replace(' ',''))
def vs():
    fm = b''
    fm += bytes([11,0x24,0x06,1,len(MJ),1,1,0,0,0,0])
    for n,(w,h) in enumerate(MJ,1):
        fm += bytes([26+4*len(FI),0x24,0x07,n,0])+struct.pack('<HHIIIIB',w,h,w*h*16*5,w*h*16*30,w*h*2,FI[0],len(FI))+ivs()
    fm += bytes([6,0x24,0x0d,1,1,4])
    fm += bytes([27,0x24,0x04,2,len(YU)])+guid(b'YUY2')+bytes([16,1,0,0,0,0])
    for n,(w,h) in enumerate(YU,1):
        fm += bytes([26+4*len(FI),0x24,0x05,n,0])+struct.pack('<HHIIIIB',w,h,w*h*16*5,w*h*16*30,w*h*2,FI[0],len(FI))+ivs()
    fm += bytes([6,0x24,0x0d,1,1,4])
    fm += bytes([28,0x24,0x10,3,len(H2)])+guid(b'H264')+bytes([16,1,0,0,0,0,1])
    for n,(w,h) in enumerate(H2,1):
        fm += bytes([26+4*len(FI),0x24,0x11,n,0])+struct.pack('<HHIIIBI',w,h,1000000,8000000,FI[0],len(FI),0)+ivs()
    nf=3
    hdr_len=13+nf
    total=hdr_len+len(fm)
    hdr=bytes([hdr_len,0x24,0x01,nf])+struct.pack('<H',total)+bytes([0x81,0,3,0,0,0,1])+bytes(nf)
    return hdr+fm
def config():
    vc = struct.pack('<BBBHHIBB',13,0x24,1,0x0110,13+18+9,48000000,1,1)
    vc += bytes([18,0x24,2,1])+struct.pack('<H',0x0201)+bytes([0,0,0,0,0,0,0,0,3,0,0,0])
    vc += bytes([9,0x24,3,3])+struct.pack('<H',0x0101)+bytes([0,1,0])
    body = bytes([8,11,0,2,0x0e,3,0,0])
    body += bytes([9,4,0,0,0,0x0e,1,0,0])+vc
    body += bytes([9,4,1,0,1,0x0e,2,0,0])+vs()+bytes([7,5,0x81,2,0,2,0])
    return bytes([9,2])+struct.pack('<H',9+len(body))+bytes([2,1,0,0x80,250])+body
DEV = bytes([18,1,0,2,0xEF,2,1,64])+struct.pack('<HHH',0x1d6b,0x0102,0x0100)+bytes([1,2,3,1])
STR = {1:'Droid Works',2:'Fake UVC Camera',3:'SN0001'}
CONF = config()
MAXP = 16384

class Cam:
    def __init__(s):
        s.probe=bytearray(34); s.set(1,1,FI[0]); s.commit=None
        s.frozen=False; s.eproto=0; s.stall_commit=False; s.hang=False; s.plugged=True
        s.conn=None; s.on=False; s.sent=0; s.opens=0
    def set(s,f,fr,iv):
        lst={1:MJ,2:YU,3:H2}.get(f,MJ); 
        if f not in (1,2,3): f=1
        if not 1<=fr<=len(lst): fr=1
        if iv not in FI: iv=min(FI,key=lambda x:abs(x-iv))
        w,h=lst[fr-1]
        s.probe=bytearray(struct.pack('<HBBIHHHHHIIIBBBB',1,f,fr,iv,0,0,0,0,0,w*h*2,MAXP,48000000,0,0,0,0))
cam=Cam()
cache={}
def frames(f,fr):
    k=(f,fr)
    if k in cache: return cache[k]
    lst={1:MJ,2:YU,3:H2}[f]; w,h=lst[fr-1]
    if f==1:
        r=[open(p,'rb').read() for p in sorted(glob.glob(f'{DIR}/mj{w}x{h}-*.jpg'))]
    elif f==2:
        r=[open(p,'rb').read() for p in sorted(glob.glob(f'{DIR}/yuy{w}x{h}-*.raw'))]
    else:
        r=[open(p,'rb').read() for p in sorted(glob.glob(f'{DIR}/h264-{w}x{h}-*.au'))]
    cache[k]=r; return r

class Conn(threading.Thread):
    """usbredir's device side"""
    def __init__(s,sock):
        super().__init__(daemon=True); s.sock=sock; s.lock=threading.Lock(); s.pend=collections.OrderedDict(); s.cv=threading.Condition(); s.alive=True; s.fid=0; s.inside=False; s.id64=False; s.conf=1
    def rd(s,n):
        b=b''
        while len(b)<n:
            c=s.sock.recv(n-len(b))
            if not c: raise EOFError
            b+=c
        return b
    def send(s,typ,pid,body=b''):
        h=struct.pack('<IIQ' if s.id64 else '<III',typ,len(body),pid)
        with s.lock: s.sock.sendall(h+body)
    def connect(s):
        log('PLUGGED'); s.inside=True; cam.commit=None
        cls=bytearray(32*4+4); struct.pack_into('<I',cls,0,2); cls[4+1]=1
        cls[36]=0x0e; cls[37]=0x0e; cls[68]=1; cls[69]=2
        s.send(4,0,bytes(cls))
        typ=bytearray([255]*32); typ[0]=0; typ[16]=0; typ[17]=2
        iv=bytearray(32); itf=bytearray(32); itf[17]=1
        mps=bytearray(64); struct.pack_into('<H',mps,0,64); struct.pack_into('<H',mps,32,64); struct.pack_into('<H',mps,34,512)
        s.send(5,0,bytes(typ)+bytes(iv)+bytes(itf)+bytes(mps))
        s.send(1,0,bytes([2,0xEF,2,1])+struct.pack('<HHH',0x1d6b,0x0102,0x0100))
    def disconnect(s):
        if s.inside: s.inside=False; s.send(2,0); s.off('unplugged'); log('UNPLUGGED')
        with s.cv: s.pend.clear()
    def run(s):
        try:
            # caps: connect_device_version(1), ep_info_max_packet_size(4), 64bits_ids(5)
            mycaps=(1<<1)|(1<<4)|(1<<5)|(1<<6)
            s.send(0,0,b'fakeuvc'.ljust(64,b'\0')+struct.pack('<I',mycaps))
            first=True
            threading.Thread(target=s.stream,daemon=True).start()
            while True:
                if s.id64: typ,ln,pid=struct.unpack('<IIQ',s.rd(16))
                else: typ,ln,pid=struct.unpack('<III',s.rd(12))
                body=s.rd(ln) if ln else b''
                if typ==0:
                    caps=struct.unpack('<I',body[64:68])[0] if len(body)>=68 else 0
                    s.id64=bool(caps&(1<<5)); s.b32=False
                    log('HELLO',body[:64].rstrip(b'\0'),hex(caps)); cam.conn=s
                    if cam.plugged: s.connect()
                elif typ==3: log('reset'); cam.commit=None; s.off('reset')
                elif typ==6: s.conf=body[0]; s.send(8,pid,bytes([0,body[0]]))
                elif typ==7: s.send(8,pid,bytes([0,s.conf]))
                elif typ==9: s.send(11,pid,bytes([0,body[0],body[1]]))
                elif typ==10: s.send(11,pid,bytes([0,body[0],0]))
                elif typ==21:
                    with s.cv: had=s.pend.pop(pid,None)
                    if had is not None: s.send(101,pid,struct.pack('<BBHIH',0x81,1,0,0,0))
                elif typ==100:
                    ep,rq,rt,st,val,idx,wl=struct.unpack('<BBBBHHH',body[:10])
                    setup=struct.pack('<BBHHH',rt,rq,val,idx,wl)
                    s.cur=(pid,ep,rq,rt,val,idx)
                    if s.inside: s.control(pid,setup,wl,body[10:],0)
                elif typ==101:
                    ep,st,n,sid,nh=struct.unpack('<BBHIH',body[:10]); n|=nh<<16
                    if ep==0x81:
                        with s.cv: s.pend[pid]=n; s.cv.notify()
                    else: s.send(101,pid,struct.pack('<BBHIH',ep,4,0,0,0))
                elif typ in (24,22,23): pass
                else: log('? type',typ,ln)
        except (EOFError,OSError) as e:
            log('gone',repr(e))
        finally:
            s.alive=False
            with s.cv: s.cv.notify_all()
            if cam.conn is s: cam.conn=None; log('QEMU DISCONNECTED'); s.off('gone')
            s.sock.close()
    def off(s,why):
        if cam.on: cam.on=False; log('STREAM OFF',why,'frames',cam.sent)
    def ret(s,seq,status,data=b'',actual=None):
        pid,ep,rq,rt,val,idx=s.cur
        st={0:0,-32:4,-71:3}[status]
        n=len(data) if actual is None else actual
        s.send(100,pid,struct.pack('<BBBBHHH',ep,rq,rt,st,val,idx,n)+data)
    def bulk(s,pid,status,data=b''):
        s.send(101,pid,struct.pack('<BBHIH',0x81,status,len(data)&0xffff,0,len(data)>>16)+data)
    def control(s,seq,setup,ln,out,dr):
        rt,rq,val,idx,wl=struct.unpack('<BBHHH',setup)
        if cam.hang: log('control hung',setup.hex()); return
        if rt==0x80 and rq==6:
            t,i=val>>8,val&255
            if t==1: d=DEV
            elif t==2: d=CONF
            elif t==3:
                d=bytes([4,3,9,4]) if i==0 else (lambda u: bytes([2+len(u),3])+u)(STR.get(i,'?').encode('utf-16-le'))
            elif t==6: d=bytes([10,6,0,2,0xEF,2,1,64,1,0])
            else: return s.ret(seq,-32)
            return s.ret(seq,0,d[:wl])
        if rt in (0x80,0x81,0x82) and rq==0: return s.ret(seq,0,bytes(2)[:wl])
        if rt==0x80 and rq==8: return s.ret(seq,0,b'\1')
        if rt==0x81 and rq==10: return s.ret(seq,0,b'\0')
        if rt==0x00 and rq in (5,9,1,3): return s.ret(seq,0)
        if rt==0x01 and rq==11: return s.ret(seq,0)
        if rt==0x02 and rq==1:
            s.off('clear halt'); cam.commit=None; return s.ret(seq,0)
        if rt in (0x21,0xa1) and (idx&255)==1:
            cs=val>>8
            if cs in (1,2):
                if rt==0x21:
                    if cs==2 and cam.stall_commit: log('commit stalled'); return s.ret(seq,-32)
                    b=out.ljust(34,b'\0'); _,f,fr,iv=struct.unpack('<HBBI',b[:8]); cam.set(f,fr,iv)
                    if cs==2: cam.commit=(f,fr,struct.unpack('<I',cam.probe[4:8])[0]); cam.opens+=1; log('COMMIT',cam.commit)
                    return s.ret(seq,0,b'',len(out))
                if rq==0x85: return s.ret(seq,0,struct.pack('<H',34)[:wl])
                if rq==0x86: return s.ret(seq,0,b'\3')
                return s.ret(seq,0,bytes(cam.probe)[:wl])
        log('STALL',setup.hex())
        s.ret(seq,-32)
    def take(s,t=2):
        with s.cv:
            end=time.time()+t
            while not s.pend:
                if not s.alive or time.time()>end: return None
                s.cv.wait(0.2)
            return s.pend.popitem(last=False)
    def stream(s):
        n=0; nxt=time.time()
        try:
            while s.alive:
                c=cam.commit
                if not c or cam.frozen: time.sleep(0.02); nxt=time.time(); continue
                with s.cv:
                    if not s.pend: s.cv.wait(0.1); 
                    if not s.pend: nxt=time.time(); continue
                fs=frames(c[0],c[1])
                if not fs: log('no frames for',c); time.sleep(1); continue
                if not cam.on: cam.on=True; n=0; log('STREAM ON',c)
                f=fs[n%len(fs)]; n+=1
                nxt+=c[2]/1e7; d=nxt-time.time()
                if d>0: time.sleep(d)
                elif d<-1: nxt=time.time()
                if cam.commit is None: continue
                pos=0; ok=True
                while pos<len(f):
                    t=s.take()
                    if not t: ok=False; break
                    seq,ln=t
                    if cam.eproto>0:
                        cam.eproto-=1; s.bulk(seq,3); log('eproto'); ok=False; break
                    room=min(ln,MAXP)-2
                    chunk=f[pos:pos+room]; pos+=len(chunk)
                    last=pos>=len(f)
                    s.bulk(seq,0,bytes([2,0x80|s.fid|(2 if last else 0)])+chunk)
                if ok: cam.sent+=1
                s.fid^=1
        except OSError: pass
def ctl():
    try: os.unlink(CTL)
    except OSError: pass
    k=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM); k.bind(CTL)
    while True:
        m,a=k.recvfrom(1000); w=m.decode().split(); r='ok'
        if w[0]=='unplug':
            cam.plugged=False
            if cam.conn: cam.conn.disconnect()
        elif w[0]=='plug':
            if not cam.plugged:
                cam.plugged=True
                if cam.conn: cam.conn.connect()
        elif w[0]=='freeze': cam.frozen=True
        elif w[0]=='thaw': cam.frozen=False
        elif w[0]=='eproto': cam.eproto=int(w[1])
        elif w[0]=='stall-commit': cam.stall_commit=w[1]=='on'
        elif w[0]=='hang': cam.hang=w[1]=='on'
        elif w[0]=='status': r=f'on={cam.on} commit={cam.commit} opens={cam.opens} sent={cam.sent} plugged={cam.plugged} attached={cam.conn is not None}'
        log('CTL',m.decode(),r)
        if a: k.sendto(r.encode(),a)
cam.frozen_on=lambda: False
threading.Thread(target=ctl,daemon=True).start()
l=socket.socket(); l.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1); l.bind(('127.0.0.1',PORT)); l.listen(5)
log('listening',l.getsockname()[1],'config bytes',len(CONF))
while True:
    c,_=l.accept(); c.setsockopt(socket.IPPROTO_TCP,socket.TCP_NODELAY,1); Conn(c).start()
